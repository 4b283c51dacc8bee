"""Scalars for TensorBoard, where they are asked for."""

from __future__ import annotations

from run_folder import RunError, RunFolder


class TensorBoard:
    """Writes to the run's folder `tensorboard`, or nothing.

    Args:
        folder: the run's.
        wanted: whether to write.
        step: steps already trained: what an interrupted run logged after them is taken back.

    Raises:
        RunError: it is wanted and the package is not installed.
    """

    def __init__(self, folder: RunFolder, wanted: bool, step: int):
        self.writer = None
        if not wanted:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise RunError(f"--tensorboard needs the package: pip install tensorboard ({error})") from error
        self.writer = SummaryWriter(folder / "tensorboard", purge_step=step + 1)

    def add(self, values: dict[str, float], step: int) -> None:
        """Values by name, after a step."""
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is still in memory."""
        if self.writer is not None:
            self.writer.close()
