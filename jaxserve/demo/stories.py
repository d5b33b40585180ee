"""Very short stories: one hero, one wish or trouble, one helper, one ending; names and pronouns stay the same."""

import random

from jaxserve.demo import world
from jaxserve.demo.grammar import expand, with_article

_OPENINGS = (
    "Once upon a time, there was [a|a little|a young] <kind> [named|called] <hero>. ",
    "Once upon a time, there [was|lived] [a|a little|a young] <kind> [named|called] <hero>. ",
    "There once was [a|a little|a young] <kind> [named|called] <hero>. ",
    "One day, [a|a little|a young] <kind> [named|called] <hero> went out [to play|for a walk|into the garden]. ",
    "Long ago, in a [small village|quiet valley|green forest], there lived [a|a little|a young] <kind> named <hero>. ",
)

# Every plot names hero, they, them, their, friend, other and thing as it needs; all stay the same in one story.
_PLOTS = (
    "<They> had <one>, and <they> loved it very much. One [morning|evening|day], the <thing> was gone. <Hero> looked "
    "[in the house|under the bed|in the garden] and [behind the door|by the river|under the old tree], but could not "
    'find it. Then <their> friend <friend> came and said, "[Do not be sad|Do not cry]. I will help you." They looked '
    "together, and they found the <thing> [under a chair|behind a bush|in a basket]. <Hero> was very happy and said, "
    '"Thank you, <friend>!"',
    "<They> wanted to [fly like a bird|see the sea|climb the high hill|learn a song|find a new friend], but <they> was "
    'afraid. "[What if I fall?|What if I get lost?|What if I cannot do it?]" said <hero>. <Their> friend <friend> '
    'smiled and said, "[We can try together|You are not alone|One step at a time]." So they tried, [again and '
    "again|step by step]. In the end <hero> was [not afraid any more|brave and proud]. "
    "[They laughed all the way home.|That night, <they> slept very well.]",
    "One [cold|rainy|windy] day, <they> met [a hungry|a lost|a sad] <other> [by the road|near the river|in the "
    'forest]. "[What is wrong?|Why are you sad?|Can I help you?]" asked <hero>. "I [am lost|am hungry|am cold]," said '
    "the <other>. <Hero> gave the <other> [some bread|an apple|a warm coat|some soup] and took it home. From that day "
    "on, <hero> and the <other> were [good|the best of] friends.",
    "Every day, <they> walked to the [river|lake|hill|market] and [sang a song|counted the clouds|looked for flowers]. "
    'One day, <they> found <one> [in the grass|under a stone|beside the path]. "Whose <thing> is this?" asked <hero>. '
    '<They> asked <their> friend <friend>, and <friend> said, "It is mine! I lost it yesterday." <Hero> gave it back. '
    "<Friend> was so happy that they [ate cake together|danced in the sun|played until the evening].",
    "<Hero> wanted to [bake a cake|build a house of wood|grow a big pumpkin|paint a picture] for <friend>. It was "
    "[not easy|hard work], and the first one was [too small|too big|very bad]. But <hero> did not give up. <They> "
    'tried again, and this time it was [good|beautiful|just right]. <Friend> said, "[This is the best day of my life|'
    'How kind you are|I love it]!" And they were both happy.',
    "One night, <they> could not sleep. <They> looked out of the window and saw [the moon|a bright star|a small "
    "light]. "
    '"[Where do you come from?|Are you alone?|Will you stay with me?]" asked <hero>. The night was [quiet|still], and '
    "the light was soft. <Hero> felt [warm|safe|calm] and closed <their> eyes. Soon <they> was asleep.",
)
_ENDINGS = ("", "", " The end.", " And they all lived happily ever after.", " It was a good day.")
_THINGS = ("ball", "kite", "hat", "book", "toy boat", "drum", "key", "red scarf", "lamp", "blue cup", "bell", "ring")
CHILDREN = {"boy": "he", "girl": "she", "king": "he", "queen": "she", "princess": "she", "prince": "he"}
MAGIC = ("unicorn", "dragon", "robot")
_SUBJECTS = {"she": ("her", "her"), "he": ("him", "his")}


def _beings() -> list[str]:
    return [animal for animal in world.ANIMALS if animal not in ("whale", "fish", "bee", "ant", "spider")]


def story_about(rng: random.Random, kind: str) -> str:
    """A story whose hero is a `kind` ("fox", "girl", "robot"), in five to seven sentences."""
    they = CHILDREN.get(kind) or rng.choice(("she", "he"))
    them, their = _SUBJECTS[they]
    hero = rng.choice(world.NAMES[they])
    friend = rng.choice([name for name in world.ALL_NAMES if name != hero])
    thing = rng.choice(_THINGS)
    other = rng.choice([animal for animal in _beings() if animal != kind])
    template = rng.choice(_OPENINGS) + rng.choice(_PLOTS) + rng.choice(_ENDINGS)
    text = expand(
        rng, template, kind=kind, hero=hero, they=they, them=them, their=their, friend=friend, thing=thing,
        one=with_article(thing), other=other,
    )  # fmt: skip
    return text.replace("a old", "an old").replace(f"a {kind} ", f"{with_article(kind)} ")


def story(rng: random.Random) -> str:
    """A story about anyone."""
    if rng.random() < 0.5:
        return story_about(rng, rng.choice(("boy", "girl")))
    return story_about(rng, rng.choice([*_beings(), *MAGIC, *CHILDREN]))
