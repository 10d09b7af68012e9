"""Defaults of the command line, one set for each --dataname; a flag that is given wins.

mmnist is the authors' recipe. The others are ours: theirs were never published.
"""

_MMNIST = dict(
    batch_size=16,
    val_batch_size=16,
    num_workers=2,
    in_shape=[10, 1, 64, 64],
    out_shape=[10, 1, 64, 64],
    layer=4,
    kernel_size=[3, 3, 3, 3],
    hid_S=64,
    COF=0.3125,
    groups=2,
    layer_config=[1, 8, 2, 8],
    segments=[4, 8],
    epochs=2000,
    lr=0.01,
    log_step=1,
)

PRESETS = {
    "mmnist": _MMNIST,
    "digits": _MMNIST
    | dict(
        batch_size=8,
        val_batch_size=50,
        num_workers=0,
        hid_S=16,
        layer_config=[1, 2, 1, 2],
        epochs=2,
        lr=0.005,
    ),
}
