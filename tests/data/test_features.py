import pytest
import torch

from livetalk.data.features import FeatureCache, identity_of


def text(rows, used, seed=0):
    features = torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))
    features[used:] = 0
    return features


def test_what_is_kept_comes_back_to_the_bit_with_its_padding(tmp_path):
    cache = FeatureCache(tmp_path, "one")
    for index, used in enumerate((3, 8, 0)):
        features = text(8, used, index)
        cache.keep(b"%d" % index, features)
        assert torch.equal(cache.read(b"%d" % index), features)
    sizes = [cache.path(name).stat().st_size for name in (b"0", b"1")]
    assert sizes[0] < sizes[1]


def test_only_what_is_missing_is_named_and_once(tmp_path):
    cache = FeatureCache(tmp_path, "one")
    cache.keep(b"a", text(4, 2))
    assert cache.missing([b"b", b"a", b"c", b"b"]) == [0, 2]
    assert FeatureCache(tmp_path, "another").missing([b"a"]) == [0]


def test_a_damaged_file_is_named_and_nothing_unfinished_is_left(tmp_path):
    cache = FeatureCache(tmp_path, "one")
    cache.keep(b"a", text(4, 2))
    assert [path.name for path in cache.folder.rglob("*") if path.is_file()] == [cache.path(b"a").name]
    cache.path(b"a").write_bytes(b"x")
    with pytest.raises(ValueError, match="remove it"):
        cache.read(b"a")


def test_an_encoder_is_known_by_every_byte_of_its_files(tmp_path):
    (tmp_path / "part").mkdir()
    file = tmp_path / "part" / "weights.safetensors"
    file.write_bytes(b"weights")
    (tmp_path / "part" / "config.json").write_bytes(b"{}")
    first = identity_of(tmp_path / "part")
    assert first == identity_of(tmp_path / "part") != identity_of(file)
    file.write_bytes(b"weighty")
    assert identity_of(tmp_path / "part") != first
    with pytest.raises(ValueError, match="is not there"):
        identity_of(tmp_path / "none")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    for folder in ("/proc/x", tmp_path / "file" / "x"):
        with pytest.raises(ValueError, match=f"features={folder} cannot be made"):
            FeatureCache(folder, "one")


def test_a_note_is_made_once(tmp_path):
    cache, asked = FeatureCache(tmp_path, "one"), []
    for _ in range(2):
        assert cache.noted("fingerprint", lambda: asked.append(1) or "abc") == "abc"
    assert asked == [1]
