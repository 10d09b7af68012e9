import sys
from multiprocessing import get_all_start_methods, get_context

import h5py
import numpy as np
import pytest

from API import UserError
from API.clips.arrays import find_arrays, open_arrays
from API.clips.clip import BadClip

VALUES = np.random.default_rng(0).uniform(250, 310, (12, 8, 10)).astype(np.float32)


def write(path, values=VALUES, dims=("time", "lat", "lon")):
    """The values in a file of any kind, under the name t2m where it has names."""
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        np.savez(path, t2m=values, lat=np.arange(8))
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("group/t2m", data=values, chunks=(5, 4, 4), compression="gzip")
            file["lat"] = np.arange(8)
    else:
        xarray = pytest.importorskip("xarray")
        pytest.importorskip("zarr" if path.suffix == ".zarr" else "h5netcdf")
        data = xarray.Dataset({"t2m": (dims, values, {"units": "K"}), "lat": np.arange(8)})
        data.to_zarr(path) if path.suffix == ".zarr" else data.to_netcdf(path, engine="h5netcdf")
    return path


@pytest.mark.parametrize("kind", ["npy", "npz", "h5", "nc", "zarr"])
def test_every_kind_of_file_gives_the_same_frames(tmp_path, kind):
    path = write(tmp_path / f"a.{kind}")
    for clip in (*find_arrays(path), *find_arrays(tmp_path)):
        assert clip.name == f"a.{kind}"
        assert clip.fingerprint()
        array = open_arrays(clip.path)
        assert np.array_equal(array.read(0, 3, 9)[:, 0], VALUES[3:9])
        assert np.array_equal(open_arrays(path, size=(4, 4)).read(0, 0, 12)[:, 0], VALUES[:, 2:6, 3:7])


def test_npy_is_read_only_where_it_is_asked_for(tmp_path):
    assert isinstance(open_arrays(write(tmp_path / "a.npy")).source, np.memmap)


def first_frame(path) -> float:
    return float(open_arrays(path).read(0, 0, 1).mean())


@pytest.mark.parametrize("kind", ["h5", "nc"])
@pytest.mark.skipif("fork" not in get_all_start_methods(), reason="processes here are not forked")
def test_files_are_opened_anew_in_forked_processes(tmp_path, kind):
    path = write(tmp_path / f"a.{kind}")
    first_frame(path)  # open here
    with get_context("fork").Pool(2) as pool:
        assert pool.map(first_frame, [path] * 4) == pytest.approx([VALUES[0].mean()] * 4)


@pytest.mark.parametrize("kind", ["h5", "nc", "zarr"])
def test_fill_values_of_a_file_are_missing(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    values = VALUES.copy()
    values[4, 2, 2] = -9999 if kind == "h5" else np.nan
    write(path, values)
    if kind == "h5":
        with h5py.File(path, "a") as file:
            file["group/t2m"].attrs["_FillValue"] = np.float32([-9999])
    with pytest.raises(BadClip, match=r"t2m.*: 1 missing values in frames 0 to 11"):
        open_arrays(path).read(0, 0, 12)
    assert open_arrays(path, fill="250").read(0, 0, 12)[4, 0, 2, 2] == 250


def test_packed_values_are_not_taken_for_the_values(tmp_path):
    for attributes in ({"scale_factor": 0.01}, {"add_offset": 273.0}, {"scale_factor": 1.0, "add_offset": 0}):
        write(tmp_path / "a.h5", VALUES)
        with h5py.File(tmp_path / "a.h5", "a") as file:
            file["group/t2m"].attrs.update(attributes)
        if attributes.get("scale_factor") == 1:
            assert np.array_equal(open_arrays(tmp_path / "a.h5").read(0, 0, 12), VALUES[:12, None])
        else:
            with pytest.raises(BadClip, match=r"t2m is packed .*: unpack it, or name"):
                open_arrays(tmp_path / "a.h5")


def test_values_have_their_name_and_unit(tmp_path):
    assert open_arrays(write(tmp_path / "a.nc")).name == "t2m (K)"
    assert open_arrays(write(tmp_path / "a.npz")).name == "t2m"


def test_one_of_several_arrays_is_chosen_by_name(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, rain=VALUES, snow=VALUES + 1, lat=np.arange(8))
    with pytest.raises(BadClip, match=r"several arrays, choose one by --variable: rain \(12, 8, 10\), snow") as error:
        open_arrays(path)
    assert "lat" not in str(error.value)
    assert np.array_equal(open_arrays(path, "snow").read(0, 0, 12)[:, 0], VALUES + 1)
    with pytest.raises(BadClip, match="has no --variable hail, but rain, snow, lat"):
        open_arrays(path, "hail")
    with pytest.raises(BadClip, match="holds no array of 4 axes: rain"):
        open_arrays(path, layout="NTHW")


@pytest.mark.parametrize("kind", ["npy", "npz", "h5", "nc"])
def test_a_damaged_file_is_named_in_a_line(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "nc":
        pytest.importorskip("h5netcdf")
    for damaged in (b"not what it says " * 9, b"", b"<html>404 Not Found</html>"):
        path.write_bytes(damaged)
        with pytest.raises(BadClip, match=rf"a\.{kind}") as error:
            open_arrays(path)
        assert "\n" not in str(error.value)
        assert "pip install" not in str(error.value)


def test_objects_are_not_loaded(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(BadClip, match="objects in dtype"):
        open_arrays(tmp_path / "a.npy")


def test_an_array_beside_objects_is_read_by_name(tmp_path):
    np.savez(tmp_path / "a.npz", x=VALUES, meta=np.array({"unit": "K"}))
    assert np.array_equal(open_arrays(tmp_path / "a.npz", "x").read(0, 0, 12)[:, 0], VALUES)
    for variable in (None, "meta"):
        with pytest.raises(BadClip, match="Object arrays are not read"):
            open_arrays(tmp_path / "a.npz", variable)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    (tmp_path / "a.nc").write_bytes(b"CDF")
    with pytest.raises(UserError, match=r"a\.nc: xarray, which reads it, is missing: pip install xarray"):
        open_arrays(tmp_path / "a.nc")


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def closed(path):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "closed").mkdir()
    write(tmp_path / "a.npy")
    monkeypatch.setattr(type(tmp_path), "iterdir", closed)
    with pytest.raises(UserError, match=r"--data_root .*: Permission denied"):
        find_arrays(tmp_path)


def test_files_are_found_at_any_depth_but_not_what_was_written_here(tmp_path):
    for name in ("b/10.npy", "b/9.npy", "a.npz", ".hidden.npy", "run/x.npy", "cache/" + "0" * 32 + ".npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name)
    (tmp_path / "run/checkpoints").mkdir()
    (tmp_path / "run/config.json").touch()
    (tmp_path / "cache/CACHEDIR.TAG").touch()
    assert [clip.name for clip in find_arrays(tmp_path)] == ["a.npz", "b/9.npy", "b/10.npy"]
    elsewhere = tmp_path.with_name(tmp_path.name + " elsewhere")
    elsewhere.mkdir()
    write(elsewhere / "11.npy")
    (tmp_path / "linked").symlink_to(elsewhere)
    (tmp_path / "b/up").symlink_to(tmp_path)  # a circle
    assert [clip.name for clip in find_arrays(tmp_path)] == ["a.npz", "b/9.npy", "b/10.npy", "linked/11.npy"]
    (tmp_path / "empty").mkdir()
    for place, message in {
        "empty": "no arrays in it",
        "none": "no such file",
        "run/config.json": "unknown kind",
    }.items():
        with pytest.raises(UserError, match=f"--data_root .*{message}"):
            find_arrays(tmp_path / place)
