"""The error for arguments of a wrong size, shape or value."""


class InputError(ValueError, RuntimeError):
    """An argument whose shape or value does not fit.

    torch.nn.GRU raises RuntimeError for some of these and ValueError for others: code that catches either still does.
    """
