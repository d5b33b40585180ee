"""The demonstration model's text: deterministic, clean, true to its tables, and made here alone."""

import ast
import hashlib
import json
import random
import re
import sys
from pathlib import Path

import pytest

from jaxserve import demo
from jaxserve.demo import chats, knowledge, world
from jaxserve.demo.corpus import Document, documents, held_out, vocabulary
from jaxserve.demo.grammar import capitalise, expand, join_words, with_article
from jaxserve.demo.stories import story_about
from jaxserve.demo.tokenizer import BEGIN_ID, END_ID, SPECIAL_TOKENS, encode, train_tokenizer

NUM_DOCUMENTS = 3000
TEXT_MODULES = ("corpus", "chats", "grammar", "knowledge", "prose", "stories", "world")


@pytest.fixture(scope="module")
def sample() -> list[Document]:
    return list(documents(7, NUM_DOCUMENTS))


def test_the_same_seed_gives_the_same_text_in_every_process(sample: list[Document]) -> None:
    again = list(documents(7, NUM_DOCUMENTS))
    other = list(documents(8, NUM_DOCUMENTS))
    assert again == sample
    assert len(set(other) & set(sample)) < NUM_DOCUMENTS / 4
    # Sets and hashes differ between processes: no choice may hang on their order.
    first = hashlib.sha256(repr(next(documents(7, 1))).encode()).hexdigest()
    assert first == hashlib.sha256(repr(sample[0]).encode()).hexdigest()


def test_texts_are_varied(sample: list[Document]) -> None:
    assert len(set(sample)) > 0.85 * NUM_DOCUMENTS
    assert sum(bool(document.turns) for document in sample) > NUM_DOCUMENTS / 2


def test_no_template_mark_is_left(sample: list[Document]) -> None:
    for document in sample:
        text = document.plain()
        assert not re.search(r"[\[\]|<>]", text), text
        assert "  " not in text and text == text.strip(), repr(text)
        assert text.isascii()


def test_conversations_alternate_and_end_with_the_assistant(sample: list[Document]) -> None:
    for document in sample:
        roles = [role for role, _ in document.turns if role != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(role != "system" for role, _ in document.turns[1:])
        assert all(content for _, content in document.turns)


def test_text_comes_from_the_tables_alone() -> None:
    directory = Path(demo.__file__).parent
    allowed = set(sys.stdlib_module_names) - {"os", "pathlib", "urllib", "http", "socket", "io", "subprocess"}
    for name in TEXT_MODULES:
        tree = ast.parse((directory / f"{name}.py").read_text())
        for node in ast.walk(tree):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in modules:
                assert module.startswith("jaxserve.demo") or module.split(".")[0] in allowed, f"{name} imports {module}"
            assert not (isinstance(node, ast.Name) and node.id in ("open", "__import__", "eval", "exec"))


def test_sums_are_right(sample: list[Document]) -> None:
    operations = {"+": int.__add__, "plus": int.__add__, "-": int.__sub__, "minus": int.__sub__}
    operations |= {"*": int.__mul__, "times": int.__mul__}
    found = 0
    for document in sample:
        for a, sign, b, result in re.findall(
            r"(\d+) (\+|-|\*|plus|minus|times) (\d+) (?:is|=) (\d+)", document.plain()
        ):
            assert operations[sign](int(a), int(b)) == int(result)
            found += 1
    assert found > 100


def test_capitals_are_those_of_the_table(sample: list[Document]) -> None:
    asked: set[str] = set()
    for document in sample:
        for country, city in re.findall(r"The capital of ([\w ]+) is ([\w ]+)\.", document.plain()):
            assert world.CAPITALS[country] == city
            asked.add(country)
    assert asked == set(world.CAPITALS)


def test_json_answers_parse() -> None:
    rng = random.Random(3)
    for _ in range(200):
        answer = json.loads(chats.as_json(rng)[1][1])
        assert set(answer) in ({"name", "age"}, {"country", "capital"})


def test_the_model_is_taught_to_say_what_it_is(sample: list[Document]) -> None:
    answers = [
        document.turns[i + 1][1]
        for document in sample
        for i, (_, content) in enumerate(document.turns)
        if content in ("Who are you?", "What are you?", "Introduce yourself.")
    ]
    assert len(answers) > 10
    assert all("tiny demonstration model" in answer for answer in answers)


def test_strange_questions_are_refused() -> None:
    rng = random.Random(5)
    for _ in range(300):
        _, (_, answer) = chats.unknown(rng)
        assert "do not know" in answer


@pytest.mark.parametrize("kind", ["girl", "king", "fox", "owl", "robot"])
def test_a_story_keeps_its_hero_and_pronoun(kind: str) -> None:
    rng = random.Random(11)
    for _ in range(50):
        text = story_about(rng, kind)
        assert re.search(rf"\b{kind}\b", text)
        hero = re.search(r"(?:named|called) ([A-Z][a-z]+)", text)
        assert hero is not None
        pronouns = set(re.findall(r"\b([Ss]he|[Hh]e)\b", text))
        assert len({pronoun.lower() for pronoun in pronouns}) <= 1
        expected = "he" if hero[1] in world.NAMES["he"] else "she"
        assert not pronouns or pronouns <= {expected, capitalise(expected)}


def test_every_topic_answers_in_a_sentence() -> None:
    rng = random.Random(1)
    for topic, _ in knowledge.TOPICS:
        for _ in range(100):
            question, answer = topic(rng)
            assert question and answer[0] == capitalise(answer)[0]
            assert answer.endswith(".") or answer.startswith("1.")


def test_the_tables_agree() -> None:
    assert set(world.CONTINENT_OF) <= set(world.CAPITALS)
    assert len(set(world.CAPITALS.values())) == len(world.CAPITALS)
    assert len(set(world.ALL_NAMES)) == len(world.ALL_NAMES)


def test_held_out_documents_were_not_trained_on() -> None:
    fresh = held_out(50, 500)
    assert len(fresh) == 50
    assert not set(fresh) & set(documents(1, 500))


def test_the_vocabulary_is_small() -> None:
    assert 1000 < len(vocabulary(count=2000)) < 4000


def test_grammar() -> None:
    rng = random.Random(0)
    seen = {expand(rng, "[a|b[c|d]] <x> <X>", x="ann") for _ in range(100)}
    assert seen == {"a ann Ann", "bc ann Ann", "bd ann Ann"}
    assert with_article("owl") == "an owl" and with_article("fox") == "a fox"
    assert join_words(["a"]) == "a" and join_words(["a", "b", "c"]) == "a, b and c"
    with pytest.raises(KeyError):
        expand(rng, "<y>")


def test_encoding_learns_only_what_the_assistant_says() -> None:
    tokenizer = train_tokenizer((document.plain() for document in documents(1, 300)), 400)
    document = Document(turns=(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello!")))
    token_ids, learned = encode(tokenizer, document)
    assert token_ids[:2] == [BEGIN_ID, SPECIAL_TOKENS.index("<|system|>")]
    written = [token for token, is_learned in zip(token_ids, learned, strict=True) if is_learned]
    assert tokenizer.decode(written[:-1]) == "Hello!" and written[-1] == END_ID
    token_ids, learned = encode(tokenizer, Document(text="Once upon a time"))
    assert learned == [False] + [True] * (len(token_ids) - 1) and token_ids[-1] == END_ID


def test_any_text_survives_the_tokenizer() -> None:
    tokenizer = train_tokenizer((document.plain() for document in documents(1, 300)), 400)
    for text in ("12 + 34", "Grüße, 世界! 🙂", "\t tabs\n\nand  spaces ", "a\x00b", "ÿþ"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
