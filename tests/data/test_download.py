"""data/moving_mnist/download_mmnist.sh against a server on loopback."""

import hashlib
import io
import os
import shutil
import subprocess
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "data/moving_mnist/download_mmnist.sh"
KTH_SCRIPT = Path(__file__).parents[2] / "data/kth/download_kth.sh"
T10K = os.urandom(10_000)
FILES = {"train-images-idx3-ubyte.gz": os.urandom(50_000), "mnist_test_seq.npy": os.urandom(200_000)}
SUMS = [hashlib.md5(data).hexdigest() for data in FILES.values()]


def kth_archive(action: str, videos: int) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for k in range(videos):
            archive.writestr(f"person{k % 25 + 1:02d}_{action}_d{k // 25 + 1}_uncomp.avi", os.urandom(50))
    return data.getvalue()


ACTIONS = ("boxing", "handclapping", "handwaving", "jogging", "running", "walking")
KTH_FILES = {f"{action}.zip": kth_archive(action, 99 if action == "handclapping" else 100) for action in ACTIONS}
KTH_FILES["00sequences.txt"] = b"person01_boxing_d1\tframes\t1-95\nperson25_walking_d4\tframes\t1-95\n"


class Handler(BaseHTTPRequestHandler):
    """/good serves whole files and ranges, /wrong other bytes; /broken answers 404, /busy 503; /short cuts it off."""

    def do_GET(self) -> None:
        _, mirror, name = self.path.split("/")
        self.server.asked.append((mirror, name, self.headers.get("Range")))
        data = (FILES | KTH_FILES | {"t10k-images-idx3-ubyte.gz": T10K}).get(name)
        if mirror == "broken" or data is None:
            self.send_error(404)
            return
        if mirror == "busy":
            self.send_error(503)
            return
        if mirror == "wrong":
            data = bytes(len(data))
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : len(data) // 2] if mirror == "short" else data[start:])

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(params=["curl", "wget"])
def download(request, server, tmp_path):
    """Run a copy of the script against mirrors of the server, with one of the two tools only."""
    if not shutil.which(request.param):
        pytest.skip(f"{request.param} is not installed")
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in (
        request.param,
        "md5sum",
        "md5",
        "bash",
        "cut",
        "dirname",
        "mv",
        "rm",
        "unzip",
        "grep",
        "find",
        "wc",
        "mkdir",
    ):
        if path := shutil.which(tool):
            (tools / tool).symlink_to(path)
    folder = tmp_path / "a folder" / "here"
    folder.mkdir(parents=True)
    shutil.copy(SCRIPT, folder)
    shutil.copy(KTH_SCRIPT, folder)
    shutil.copy(SCRIPT.parents[1] / "fetch.sh", folder.parent)
    base = f"http://127.0.0.1:{server.server_port}"

    def run(*mirrors: str, script: Path = SCRIPT) -> subprocess.CompletedProcess:
        addresses = " ".join(f"{base}/{mirror}" for mirror in mirrors)
        environment = dict(PATH=str(tools), no_proxy="127.0.0.1", NO_PROXY="127.0.0.1")
        environment |= dict(MNIST_MIRRORS=addresses, MMNIST_MIRRORS=addresses, MNIST_MD5=SUMS[0], MMNIST_MD5=SUMS[1])
        environment |= dict(KTH_MIRRORS=addresses, T10K_MD5=hashlib.md5(T10K).hexdigest())
        command = ["bash", str(folder / script.name)]
        return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=120)

    run.folder = folder
    return run


def complete(folder: Path) -> bool:
    return all((folder / name).read_bytes() == data for name, data in FILES.items())


def test_all_files_arrive_whole_and_a_second_run_asks_for_nothing(download, server):
    assert download("good").returncode == 0
    assert complete(download.folder)
    server.asked.clear()
    assert download("good").returncode == 0
    assert server.asked == []
    assert not list(download.folder.glob("*.part"))


def test_where_the_test_set_cannot_be_had_the_way_to_make_another_is_said(download, server, monkeypatch):
    monkeypatch.delitem(FILES, "mnist_test_seq.npy")
    result = download("good")
    assert result.returncode == 1
    assert "error: mnist_test_seq.npy could not be fetched" in result.stderr
    assert f"python {download.folder}/make_test_set.py" in result.stderr
    assert (download.folder / "t10k-images-idx3-ubyte.gz").read_bytes() == T10K


@pytest.mark.parametrize("first", ["broken", "wrong"])
def test_a_bad_mirror_is_passed_over(download, first):
    assert download(first, "good").returncode == 0
    assert complete(download.folder)


def test_a_cut_connection_leaves_no_half_file_and_the_next_run_goes_on_from_there(download, server):
    result = download("short")
    assert result.returncode == 1
    assert "error:" in result.stderr
    assert not any((download.folder / name).exists() for name in FILES)
    server.asked.clear()
    assert download("good").returncode == 0
    assert complete(download.folder)
    assert all(asked_range and asked_range != "bytes=0-" for _, _, asked_range in server.asked)


@pytest.mark.parametrize("mirror", ["busy", "broken", "nobody"])
def test_what_has_come_is_kept_where_a_server_cannot_be_reached(download, server, mirror, monkeypatch):
    part = download.folder / "mnist_test_seq.npy.part"
    part.write_bytes(FILES[part.stem][:150_000])
    if mirror == "nobody":
        server.server_close()  # the port is refused
    result = download(mirror)
    assert result.returncode == 1
    assert part.read_bytes() == FILES[part.stem][:150_000]
    assert "thrown away" not in result.stderr
    assert [p.name for p in download.folder.glob("*.part")] == [part.name]


def test_a_part_longer_than_the_file_is_fetched_anew(download):
    part = download.folder / "mnist_test_seq.npy.part"
    part.write_bytes(bytes(250_000))
    assert download("good").returncode == 0
    assert complete(download.folder)


def test_wrong_bytes_everywhere_end_in_an_error_and_no_file(download):
    result = download("wrong")
    assert result.returncode == 1
    assert "md5" in result.stderr
    assert {p.name for p in download.folder.iterdir()} == {SCRIPT.name, KTH_SCRIPT.name}


def test_a_damaged_file_is_fetched_again(download):
    (download.folder / "mnist_test_seq.npy").write_bytes(b"damaged")
    assert download("good").returncode == 0
    assert complete(download.folder)


def test_all_kth_archives_arrive_and_are_unpacked_once(download, server):
    if not shutil.which("unzip"):
        pytest.skip("unzip is not installed")
    assert download("short", script=KTH_SCRIPT).returncode == 1
    assert not any((download.folder / action).exists() for action in ACTIONS)
    result = download("broken", "wrong", "good", script=KTH_SCRIPT)
    assert result.returncode == 0, result.stderr
    for action in ACTIONS:
        assert len(list((download.folder / action).glob("person*_uncomp.avi"))) == (
            99 if action == "handclapping" else 100
        )
    assert not list(download.folder.glob("*.zip*"))
    server.asked.clear()
    assert download("good", script=KTH_SCRIPT).returncode == 0
    assert server.asked == []
