"""Which checkpoints lie in a folder, for processes that read none of them."""

from sparse_model import storage

CHECKPOINT_MANIFEST = "manifest.json"
"""Written last: a checkpoint that has it is whole."""


def checkpoint_names(uri: str) -> list[str]:
    """Names of checkpoints, whole or not, in order of their steps."""
    return [name for name in storage.listdir(uri) if name.startswith("step-")]


def is_whole(uri: str, name: str) -> bool:
    return storage.exists(storage.join(uri, name, CHECKPOINT_MANIFEST))


def newest_step(uri: str) -> int:
    """Steps of the newest whole checkpoint, 0 where there is none."""
    return max((int(name.split("-")[1]) for name in checkpoint_names(uri) if is_whole(uri, name)), default=0)


def remove_partial(uri: str) -> None:
    """Drop checkpoints that were broken off, while nobody trains: some may never be followed by a whole one."""
    for name in checkpoint_names(uri):
        if not is_whole(uri, name):
            storage.remove(storage.join(uri, name))
