"""The text: the Python language reference, which every Python includes for `help()`.

`pydoc_data.topics` holds its chapters by name (Copyright Python Software Foundation; PSF licence
version 2). Chapters repeat each other's paragraphs, a fifth of the text in Python 3.11. Each
paragraph is kept only once, at its first place; otherwise the held-out part would largely be text
that was trained on. Tables are removed: they are mostly spaces, and more frequent in the last
chapters. The text differs slightly between versions of Python, and so do the losses.
"""

import dataclasses
import hashlib
import pydoc_data.topics

import numpy as np

from examples.shared.command_line import UserError


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A text as numbers.

    Attributes:
      vocabulary: the characters, sorted; the number of a character is its index.
      train: the first 90 % of the characters, int32 [count].
      validation: the last 10 %.
    """

    vocabulary: str
    train: np.ndarray
    validation: np.ndarray

    @property
    def digest(self) -> str:
        """Identifies this text."""
        return hashlib.sha256(self.train.tobytes() + self.validation.tobytes()).hexdigest()[:16]


def text() -> str:
    """The chapters in alphabetical order, each paragraph once, without the tables."""
    topics = pydoc_data.topics.topics
    chapters = (topics[name] for name in sorted(topics))
    paragraphs = (p.strip("\n") for chapter in chapters for p in chapter.split("\n\n"))
    running = (p for p in paragraphs if p and not p.lstrip().startswith(("+-", "|")))
    return "\n\n".join(dict.fromkeys(running)) + "\n"


def load() -> Corpus:
    """The text, split. The vocabulary covers both parts."""
    whole = text()
    vocabulary = "".join(sorted(set(whole)))
    tokens = encode(whole, vocabulary)
    cut = len(tokens) * 9 // 10
    return Corpus(vocabulary, tokens[:cut], tokens[cut:])


def encode(text: str, vocabulary: str) -> np.ndarray:
    """Numbers of the characters, int32 [len(text)]. Raises UserError for unknown characters."""
    unknown = sorted(set(text) - set(vocabulary))
    if unknown:
        raise UserError(
            f"the model does not know {' '.join(map(repr, unknown))};"
            f" it was trained on {vocabulary.strip()}"
        )
    number = {character: i for i, character in enumerate(vocabulary)}
    return np.array([number[character] for character in text], np.int32)


def decode(tokens: np.ndarray, vocabulary: str) -> str:
    """The characters of the numbers."""
    return "".join(vocabulary[i] for i in tokens)


def ngram_losses(corpus: Corpus, order: int) -> list[float]:
    """Validation losses, nats per character, of models with contexts of 0, 1, ... order - 1.

    Each model counts the characters that followed a context h in training, and mixes these counts
    with the next shorter model. The shorter model's weight grows with the number of kinds of
    characters that followed (Witten & Bell 1991):

    p(c | h) = (count(h, c) + kinds(h)·p(c | h without its first)) / (count(h) + kinds(h))

    The shortest model is mixed with 1 / (size of the vocabulary). For a context that did not occur
    in training, the shorter model predicts alone.
    """
    size, seen = len(corpus.vocabulary), len(corpus.train)
    text = np.concatenate([corpus.train, corpus.validation])
    p = np.full(len(text), 1 / size)
    context = np.zeros(len(text), np.int64)  # For each character: the number of its context.
    losses = []
    for _ in range(order):
        grams, gram = np.unique(context * size + text, return_inverse=True)
        count = np.bincount(gram[:seen], minlength=len(grams))
        total = np.bincount(grams // size, count)[context]
        kinds = np.bincount(grams // size, count > 0)[context]
        mixed = (count[gram] + kinds * p) / np.maximum(total + kinds, 1)
        p = np.where(total > 0, mixed, p)
        losses.append(-float(np.log(p[seen:]).mean()))
        # One character more: the context of a character is the gram that ends just before it. The
        # text is treated as circular, which affects only the very first characters.
        context = np.roll(gram, 1)
    return losses
