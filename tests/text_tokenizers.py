"""Small tokenizers of the families that checkpoints use, built in memory."""

from functools import cache

from random_checkpoint import SPECIAL_TOKENS, byte_level_tokenizer
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from jaxserve.text.tokenizer import Tokenizer


@cache
def byte_level() -> Tokenizer:
    """As Llama 3 and Qwen: every byte is a token, some pairs are merged; prepends <|begin|>."""
    return Tokenizer(
        PreTrainedTokenizerFast(
            tokenizer_object=byte_level_tokenizer(512), bos_token=SPECIAL_TOKENS[0], eos_token=SPECIAL_TOKENS[1]
        )
    )


@cache
def sentencepiece() -> Tokenizer:
    """As Llama 2 and Mistral: "▁" for a space, one before the text, bytes for unknown characters; prepends <s>."""
    specials = ["<unk>", "<s>", "</s>"]
    letters = "▁helowrdtinas"
    merges = [("h", "e"), ("l", "l"), ("▁", "he"), ("▁he", "ll"), ("▁hell", "o"), ("▁", "w"), ("▁w", "o"), ("o", "r")]
    words = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *(a + b for a, b in merges), "é", "€"]
    backend = Backend(
        models.BPE(
            vocab={word: index for index, word in enumerate(words)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return Tokenizer(
        PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    )


@cache
def metaspace() -> Tokenizer:
    """As sentencepiece(), with the older Metaspace decoder: not read byte by byte."""
    backend = Backend.from_str(sentencepiece().backend.to_str())
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    return Tokenizer(
        PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    )


@cache
def wordpiece() -> Tokenizer:
    """As BERT: words and "##" endings, spaces put between words by the decoder."""
    words = ["[UNK]", "[SEP]", "[USER]", "hello", "world", "##s", "##ly", "who", "friend"]
    backend = Backend(models.WordPiece(vocab={word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(cleanup=False)
    backend.add_special_tokens(["[UNK]", "[SEP]", "[USER]"])
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]"))


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token as it stands in the vocabulary."""
    found = tokenizer.backend.token_to_id(token)
    assert found is not None, token
    return found
