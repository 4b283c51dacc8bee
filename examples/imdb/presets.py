"""What is trained, and how: one dictionary a preset. A command-line flag of the same name overrides a value."""

from typing import Any

# What every preset has, at values that change nothing.
COMMON: dict[str, Any] = {
    "model": "last-state",
    "tokens": "spaces",
    "vocabulary_size": None,
    "bucketed": True,
    "train_share": 0.8,
    "clip": None,
    "weight_decay": 0.0,
    "warmup": 0.0,
    "schedule": "constant",
    "averaging": None,
    "adversarial": 0.0,
    "accumulate": 1,
    "precision": "fp32",
}

# The published pipeline, its faults included: unbucketed batches, the state read behind the padding, dropout without
# effect. Embedding 128, hidden 256, Adam 1e-3, batches of 64, 40 epochs: 85.62 % there.
BOOK = COMMON | {
    "masked": False,
    "bucketed": False,
    "embedding_size": 128,
    "hidden_size": 256,
    "dropout": 0.5,
    "learning_rate": 1e-3,
    "batch_size": 64,
    "epochs": 40,
}

# What a segment classifier is trained with. Words of the training part alone; a stratified tenth of it validates.
SEGMENTS = COMMON | {
    "model": "segments",
    "masked": True,
    "tokens": "words",
    "vocabulary_size": 30_000,
    "train_share": 0.9,
    "clip": 1.0,
    "batch_size": 64,
    "dropout": 0.5,
    "ngram_learning_rate": 3e-3,
    "ngram_order": 3,
}

BEST = SEGMENTS | {
    "embedding_size": 128,
    "hidden_size": 128,
    "bidirectional": True,
    "segment": 64,
    "crop": 256,
    "last": False,
    "head_size": 0,
    "embedding_dropout": 0.3,
    "word_dropout": 0.1,
    "ngrams": 300_000,
    "learning_rate": 2e-3,
    "warmup": 0.05,
    "schedule": "cosine",
    "averaging": 0.99,
    "epochs": 5,
}

# A language model first, on the unlabelled reviews too; then the classifier, from its weights, with losses that need no
# label. Sizes and rates follow Miyato et al. 2017 and Sachan et al. 2019.
SEMI = SEGMENTS | {
    "vocabulary_size": 50_000,
    "embedding_size": 256,
    "hidden_size": 1024,
    "bidirectional": False,
    "segment": 400,
    "crop": 400,
    "last": True,
    "head_size": 50,
    "embedding_dropout": 0.5,
    "word_dropout": 0.0,
    "ngrams": 0,
    "learning_rate": 5e-4,
    "pretrained_learning_rate": 2.5e-4,
    "schedule": "cosine",
    "averaging": 0.999,
    "adversarial": 5.0,
    "epochs": 16,
    "unlabelled_batch_size": 192,
    "entropy": 1.0,
    "lm_epochs": 12,
    "lm_streams": 256,
    "lm_steps": 200,
    "lm_learning_rate": 1e-3,
}

# With `masked` the published pipeline's three faults are mended, and the embedded words are dropped out too.
PRESETS = {
    "book": BOOK,
    "book-masked": BOOK | {"masked": True, "bucketed": True},
    "best": BEST,
    "semi": SEMI,
}
