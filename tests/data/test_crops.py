"""Crops and batches: exact windows, nothing but the step's number counts, ranks and threads change nothing."""

import os
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twofold.contracts import DataError, Sample
from twofold.data import crops
from twofold.data.batches import Batches, Shard
from twofold.data.crops import CropCache, as_floats, free_memory, plan, read_all, read_pairs
from twofold.data.pairs import Pair
from twofold.data.sources import PairCrops, SourceMixture, SyntheticCrops
from twofold.degrade.additive import GaussianNoise, rain_region


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def numbered(height=9, width=13, start=0):
    """A picture whose every pixel has a value of its own."""
    return (start + torch.arange(height * width)).view(1, height, width).to(torch.int32)


NOISY = SyntheticCrops(CropCache([torch.randint(256, (3, 40, 50), dtype=torch.uint8)]), GaussianNoise(), 16)


@given(seed=st.integers(0, 10**6), size=st.integers(1, 9), rotate=st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_crop_is_a_window_mirrored_or_rotated(seed, size, rotate):
    picture = numbered()
    crop = CropCache([picture], rotate).crop(size, plan(seeded(seed)))
    values = crop.unique()
    y, x = divmod(int(values[0]), 13)
    window = picture[:, y : y + size, x : x + size]
    shapes = [window, window.flip(2)]
    if rotate:
        shapes += [s.flip(1) for s in shapes]
        shapes += [s.transpose(1, 2) for s in shapes]
    assert any(torch.equal(crop, shape) for shape in shapes)


def test_every_place_and_every_rotation_comes_up():
    cache, g = CropCache([numbered(4, 5), numbered(3, 3, start=100)], rotate=True), seeded()
    found = [cache.crop(3, plan(g)) for _ in range(2000)]
    corners = {int(crop.min()) for crop in found}
    assert corners == {0, 1, 2, 5, 6, 7, 100}
    assert len({tuple(crop.flatten().tolist()) for crop in found if crop.min() == 100}) == 8


def test_weather_is_never_turned_upside_down():
    cache, g = CropCache([numbered()]), seeded()
    crops = [cache.crop(5, plan(g)) for _ in range(200)]
    assert all((crop[:, 1:] > crop[:, :-1]).all() for crop in crops)


def test_a_small_picture_goes_on_mirrored():
    small = CropCache([torch.tensor([[[1, 2, 3], [1, 2, 3]]])])
    crop = small.crop(8, (0, 0, 0, 0.9, 0.9, 0.9))
    assert crop[0, 7].tolist() == [1, 2, 3, 3, 2, 1, 1, 2]
    with pytest.raises(DataError, match="a picture of 3 x 2 is too small for crops of 9"):
        small.crop(9, (0, 0, 0, 0.9, 0.9, 0.9))


def test_bytes_become_floats_in_their_range():
    whole = as_floats([torch.tensor([[[0, 51, 255]]], dtype=torch.uint8)] * 2)
    torch.testing.assert_close(whole, torch.tensor([0.0, 0.2, 1.0]).view(1, 1, 1, 3).expand(2, 1, 1, 3))


def test_both_sides_of_a_pair_are_cropped_alike_and_the_rule_gives_the_guidance():
    clean = torch.randint(200, (3, 30, 40), dtype=torch.uint8)
    observed = clean + torch.randint(40, (1, 30, 40), dtype=torch.uint8)
    source = PairCrops(CropCache([observed]), CropCache([clean]), 12, rain_region)
    for seed in range(20):
        sample = source(seeded(seed))
        added = ((sample.observed - sample.clean) * 255).round()
        assert (added == added[:, :1]).all()
        assert added.min() >= 0
        assert torch.equal(sample.guidance, (added[:, :1] > 10).float())


def test_sides_that_do_not_fit_are_refused():
    one, two = torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(3, 8, 9, dtype=torch.uint8)
    with pytest.raises(DataError, match="pair 1"):
        PairCrops(CropCache([one, one]), CropCache([one, two]), 4)
    with pytest.raises(DataError, match="2 observed pictures and 1 clean"):
        PairCrops(CropCache([one, one]), CropCache([one]), 4)
    with pytest.raises(DataError, match="rotated"):
        PairCrops(CropCache([one], rotate=True), CropCache([one]), 4)


def test_a_mixture_draws_as_often_as_its_weights_say():
    def always(value):
        return lambda generator: Sample(torch.full((1, 1, 1, 1), value), torch.zeros(1, 1, 1, 1))

    mixture, g = SourceMixture([always(0.0), always(1.0), always(2.0)], [3, 0, 1]), seeded()
    drawn = torch.tensor([mixture(g).clean.item() for _ in range(4000)])
    assert not (drawn == 1).any()
    assert abs((drawn == 2).float().mean() - 0.25) < 0.03


@pytest.mark.parametrize("weights", [[1], [1, -1], [0, 0], []])
def test_a_mixture_that_cannot_be_drawn_from_is_refused(weights):
    with pytest.raises(DataError, match="2 sources"):
        SourceMixture([NOISY, NOISY], weights)


def equal(one, two):
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True) if a is not None)


@given(n=st.integers(0, 10**7), seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_a_batch_depends_on_its_number_and_the_seed_alone(n, seed):
    straight = Batches(NOISY, 4, seed=seed, ahead=False)
    before, wanted = straight(n + 1), straight(n)
    ahead = Batches(NOISY, 4, seed=seed)
    assert equal(ahead(n), wanted)
    assert equal(ahead(n + 1), before)
    assert equal(ahead(n), wanted)
    assert not equal(before, wanted)
    assert not equal(Batches(NOISY, 4, seed=seed + 1, ahead=False)(n), wanted)


@pytest.mark.parametrize("ranks", [1, 2, 3, 6])
def test_the_shares_of_all_ranks_together_are_the_whole_batch(ranks):
    whole = Batches(NOISY, 6, ahead=False)(3)
    shares = [Batches(NOISY, 6, share=Shard(rank, ranks), ahead=False)(3) for rank in range(ranks)]
    assert equal(Sample(*(torch.cat([s[i] for s in shares]) for i in range(3))), (*whole[:3], None))


def test_a_rank_makes_its_own_samples_only():
    made = []

    def source(generator):
        made.append(1)
        return NOISY(generator)

    Batches(source, 8, share=Shard(1, 4), ahead=False)(0)
    assert len(made) == 2


def test_samples_of_neighbouring_steps_and_seeds_are_unrelated():
    def source(generator):
        return Sample(torch.rand(1, 1, 1, 1, generator=generator), torch.zeros(1, 1, 1, 1))

    first = torch.stack([Batches(source, 500, seed=s, ahead=False)(n).clean.flatten() for s in (0, 1) for n in (0, 1)])
    assert len(first.unique()) == 2000
    correlation = torch.corrcoef(torch.cat([first[:, :-1], first[:, 1:]]))
    assert (correlation - torch.eye(8)).abs().max() < 0.2


def test_a_batch_that_cannot_be_shared_evenly_is_refused():
    with pytest.raises(DataError, match="batch of 5 cannot be shared by 2"):
        Batches(NOISY, 5, share=Shard(0, 2))


def test_the_thread_that_works_ahead_leaves_the_others_their_threads():
    threads = torch.get_num_threads()
    seen = []

    def source(generator):
        seen.append(torch.get_num_threads())
        return NOISY(generator)

    Batches(source, 2)(0)
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert set(seen) == {1}
    assert later == [threads]
    assert torch.get_num_threads() == threads


def test_an_error_in_the_thread_reaches_whoever_asks_for_the_batch():
    def source(generator):
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        Batches(source, 2)(0)


def test_pictures_are_cached_as_bytes_in_colour(picture):
    paths = [picture("a.png", 5, 7), picture("b.png", 6, 4, channels=1)]
    colour, grey = CropCache.of(paths).pictures
    assert colour.dtype == grey.dtype == torch.uint8
    assert colour.shape == (3, 5, 7)
    assert grey.shape == (3, 6, 4)
    assert torch.equal(grey[0], grey[2])


def test_the_first_unreadable_files_of_a_folder_are_named(tmp_path, picture):
    good = [picture(f"{i}.png") for i in range(3)]
    bad = [tmp_path / f"bad{i}.png" for i in range(5)]
    for path in bad:
        path.write_text("no picture")
    with pytest.raises(DataError, match=r"5 of 8 pictures cannot be read: .*bad0\.png.*bad1\.png.*bad2\.png.* 2 more"):
        read_all([*good, *bad])
    with pytest.raises(DataError, match="no pictures to train on"):
        CropCache.of([])


def test_pictures_beyond_the_memory_lie_in_a_file_and_are_cropped_the_same(picture):
    paths = [picture(f"{i}.png", 20 + i, 30) for i in range(4)]
    inside = read_all(paths)
    first = inside[0].numel()
    for memory in (0, first, first + 1, 10**9):
        found = read_all([*paths, paths[1]], memory=memory)
        assert all(torch.equal(a, b) for a, b in zip(found, [*inside, inside[1]], strict=True))
        assert found[1].data_ptr() == found[4].data_ptr(), "a picture that is named twice is kept once"
    assert free_memory() > 0
    choice = plan(seeded())
    assert torch.equal(CropCache(read_all(paths, memory=0)).crop(16, choice), CropCache(inside).crop(16, choice))


def test_pictures_are_not_decoded_far_ahead_of_a_slow_disk(picture, monkeypatch):
    path, read, kept = picture("a.png"), [], []
    monkeypatch.setattr(crops, "read_bytes", lambda path, channels: read.append(path) or torch.zeros(3, 4, 4).byte())

    def slowly(pictures, room):
        for found in pictures:
            kept.append(found)
            time.sleep(0.002)
            assert len(read) - len(kept) <= 2 * (os.cpu_count() or 1) + 1
        return kept

    monkeypatch.setattr(crops, "_kept", slowly)
    assert len(read_all([path.with_name(f"{i}.png") for i in range(60)])) == 60


def test_a_full_disk_under_the_images_is_reported(picture, monkeypatch):
    def full(**options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(DataError, match=r"No space left on device\); name a larger folder by the variable TMPDIR"):
        read_all([picture("a.png")], memory=0)


def test_pairs_are_read_with_the_larger_clean_picture_cropped(picture):
    wet, dry, odd = picture("wet.png", 40, 60), picture("dry.png", 42, 64), picture("odd.png", 80, 64)
    observed, clean = read_pairs([Pair(wet, dry, "1")])
    assert observed[0].shape == clean[0].shape == (3, 40, 60)
    with pytest.raises(DataError, match=r"odd\.png"):
        read_pairs([Pair(wet, odd, "1")])


def test_a_zoomed_crop_shows_more_of_the_picture_at_the_same_size():
    ramp = torch.arange(64).mul(4).to(torch.uint8).view(1, 1, 64).expand(3, 64, 64)
    choice = (0.0, 0.0, 0.0, 0.9, 0.9, 0.9)
    near, far = (CropCache([ramp]).crop(16, choice, zoom) for zoom in (1.0, 2.0))
    assert near.shape == far.shape == (3, 16, 16)
    assert far.dtype == torch.uint8
    assert int(near.max()) == 60
    assert 118 <= int(far.max()) <= 124  # the mean of the last two of 32 columns
    assert CropCache([ramp]).crop(16, choice, 100.0).shape == (3, 16, 16)  # no more than the picture has


def test_both_pictures_of_a_pair_are_zoomed_alike():
    cache = CropCache([torch.randint(256, (3, 60, 50), dtype=torch.uint8, generator=seeded())])
    sample = PairCrops(cache, cache, 16, zoom=(1.0, 3.0))(seeded(3))
    assert torch.equal(sample.observed, sample.clean)
