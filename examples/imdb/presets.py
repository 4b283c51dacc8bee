"""What is trained, and how: one dictionary a preset. A command-line flag of the same name overrides a value."""

PRESETS = {
    # The published pipeline, its faults included: unbucketed batches, the state read behind the padding, dropout
    # without effect. Embedding 128, hidden 256, Adam 1e-3, batches of 64, 40 epochs: 85.62 % there.
    "book": {
        "masked": False,
        "embedding_size": 128,
        "hidden_size": 256,
        "dropout": 0.5,
        "learning_rate": 1e-3,
        "batch_size": 64,
        "epochs": 40,
    },
    # The same with those three faults mended.
    "book-masked": {
        "masked": True,
        "embedding_size": 128,
        "hidden_size": 256,
        "dropout": 0.5,
        "learning_rate": 1e-3,
        "batch_size": 64,
        "epochs": 40,
    },
}
