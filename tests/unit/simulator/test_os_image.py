"""The simulated OS image."""

from __future__ import annotations

import hashlib

import pytest

from dstack.errors import InputError, MeasurementMalformedError
from dstack.measurement.document import DOCUMENT_NAME, reference_values
from dstack.measurement.event_log import replay_event_log
from dstack.measurement.image import parse_checksum_file
from dstack.simulator.os_image import GIB, SimulatedImage, make_image


def test_the_list_names_the_files():
    """sha256sum.txt lists every part with its digest, and its own digest is the os image hash in digest.txt."""
    image = make_image()

    listed = parse_checksum_file(image.files["sha256sum.txt"])

    assert set(listed) == {"ovmf.fd", "bzImage", "initramfs.cpio.gz", "metadata.json", DOCUMENT_NAME}
    assert all(hashlib.sha256(image.files[name]).digest() == digest for name, digest in listed.items())
    assert image.files["digest.txt"].decode() == image.os_image_hash.hex()


def test_a_name_determines_the_image():
    """One name gives one image, another name another os image hash and other registers."""
    one, other = make_image("one"), make_image("other")

    assert make_image("one") == one
    assert one.os_image_hash != other.os_image_hash
    assert one.mr_td(one.vm_config()) != other.mr_td(other.vm_config())


@pytest.mark.parametrize("memory_size", [2 * GIB, 4 * GIB])
def test_the_boot_log_folds_into_the_reference_values(memory_size):
    """A machine that plays the boot log has exactly the registers that its config predicts."""
    image = make_image()
    config = image.vm_config(memory_size=memory_size)
    log = image.boot_log(config)

    registers, reference = replay_event_log(log), reference_values(config, log)

    assert image.mr_td(config) == reference.mrtd
    assert (registers[0], registers[1], registers[2]) == (reference.rtmr0, reference.rtmr1, reference.rtmr2)
    assert reference.os_image_hash == image.os_image_hash


def test_the_shape_of_the_vm_is_in_rtmr0():
    """CPU count and memory size change RTMR0, and nothing but RTMR0."""
    image = make_image()
    shapes = [image.vm_config(), image.vm_config(cpu_count=3), image.vm_config(memory_size=4 * GIB)]
    registers = [replay_event_log(image.boot_log(shape)) for shape in shapes]

    assert len({replay[0] for replay in registers}) == 3
    assert len({(replay[1], replay[2]) for replay in registers}) == 1


def test_what_is_saved_is_loaded(tmp_path):
    """A saved image is loaded as the same."""
    make_image().save(tmp_path / "image")

    assert SimulatedImage.load(tmp_path / "image") == make_image()


def test_a_changed_file_is_refused(tmp_path):
    """A file that sha256sum.txt does not list as it is, is refused by name."""
    make_image().save(tmp_path)
    (tmp_path / "bzImage").write_bytes(b"another kernel")
    with pytest.raises(MeasurementMalformedError, match=r"image: sha256sum.txt does not list this bzImage"):
        SimulatedImage.load(tmp_path)


def test_a_missing_or_huge_file_is_refused(tmp_path):
    """A file that is missing, or larger than any stand-in, is refused by name."""
    make_image().save(tmp_path)
    (tmp_path / "ovmf.fd").write_bytes(bytes(1024 * 1024 + 1))
    with pytest.raises(InputError, match=r"image: ovmf.fd: want at most 1048576 bytes"):
        SimulatedImage.load(tmp_path)
    (tmp_path / "ovmf.fd").unlink()
    with pytest.raises(InputError, match=r"image: want ovmf.fd in .*No such file"):
        SimulatedImage.load(tmp_path)
