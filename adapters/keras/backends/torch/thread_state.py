"""What Keras asks its thread for at every operation: put there, so that asking finds something.

Scopes, masks and settings are attributes of a `threading.local` that `get_global_attribute` reads by name.
To read one that is not there makes an AttributeError with its message, which is dropped: 250 times a step of
an FNN on torch, 480 times an RNN's. None in its place means the same and costs nothing. Of the six names that
steps ask for, two are there in a user's script as soon as `fit` has tried out its loss, which ours need not.
"""

from __future__ import annotations

from keras.src.backend.common import global_state

ASKED_FOR = (
    "_keras_mask_dict",
    "autocast_scope",
    "distribution",
    "stateless_scope",
    "torch_device",
    "traceback_filtering",
)


def fill() -> None:
    """Put None where this thread has nothing; what is there stays."""
    for name in ASKED_FOR:
        global_state.set_global_attribute(name, global_state.get_global_attribute(name))
