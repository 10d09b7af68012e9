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

_VIDEO = _MMNIST | dict(
    batch_size=4,
    val_batch_size=4,
    in_shape=[10, 3, 128, 128],
    out_shape=[10, 3, 128, 128],
    hid_S=32,
    layer_config=[1, 4, 2, 4],
    epochs=100,
    lr=0.005,
)

PRESETS = {
    "mmnist": _MMNIST,
    "digits": _MMNIST
    | dict(
        batch_size=4,
        val_batch_size=50,
        num_workers=0,
        hid_S=8,
        layer_config=[0, 0, 0, 4],  # where DFDBs pay in a small model: docs/results.md
        groups=1,
        epochs=5,
        lr=0.005,
    ),
    # The others: frames of 128 and 256 pixels have feature maps of 64 and 128, where `segments` or `hid_S` keep the
    # signals, and with them the MLPs, near the length that they have on Moving MNIST (2560 and 1280).
    "kth": _VIDEO | dict(in_shape=[10, 1, 128, 128], out_shape=[20, 1, 128, 128]),
    "human": _MMNIST
    | dict(
        batch_size=8,
        val_batch_size=8,
        in_shape=[4, 3, 256, 256],
        out_shape=[4, 3, 256, 256],
        layer_config=[1, 4, 2, 4],
        segments=[8, 16],
        epochs=50,
        lr=0.005,
    ),
    "sjtu4k": _MMNIST
    | dict(
        batch_size=4,
        val_batch_size=4,
        in_shape=[4, 3, 256, 448],
        out_shape=[4, 3, 256, 448],
        layer_config=[1, 4, 2, 4],
        segments=[8, 16],
        epochs=200,
        lr=0.005,
    ),
    "taxibj": _MMNIST
    | dict(
        in_shape=[4, 2, 32, 32],
        out_shape=[4, 2, 32, 32],
        layer_config=[1, 4, 2, 4],
        segments=[1, 2],
        epochs=50,
        lr=0.005,
    ),
    "video": _VIDEO,
    "arrays": _VIDEO | dict(in_shape=[10], out_shape=[10]),  # T; the rest is as in the files
}
