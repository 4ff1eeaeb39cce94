"""A plan is a pure function of what the source holds: the listing's order does not matter."""

import random

import numpy as np
import pytest

from shards import plan as plans
from shards.plan import Entry, Plan, make_plan, rows_of


def entries(count: int, split: str = "train") -> list[Entry]:
    return [
        Entry(split, f"c{i % 7}/{i:05d}.jpg".encode(), 1000 + i % 13, i % 7) for i in range(count)
    ]


def planned(listed: list[Entry], seed: int = 0, shard_bytes: int = 50_000, **options) -> Plan:
    return make_plan("x", "images", listed, seed=seed, shard_bytes=shard_bytes, options=options)


def test_the_order_of_the_listing_does_not_matter() -> None:
    listed = entries(1000) + entries(100, "val")
    shuffled = random.Random(1).sample(listed, len(listed))
    assert planned(listed).sha256 == planned(shuffled).sha256
    assert planned(listed).rows.equals(planned(shuffled).rows)


def test_every_file_has_one_id_and_ids_count_up_over_splits_and_shards() -> None:
    made = planned(entries(1000) + entries(100, "val") + entries(10, "extra"))
    assert made.rows["sample_id"].to_pylist() == list(range(1110))
    assert list(dict.fromkeys(made.rows["split"].to_pylist())) == ["train", "val", "extra"]
    assert sorted(made.rows["src"].to_pylist()[:1000]) == sorted(e.src for e in entries(1000))
    covered = [row for _, _, start, end in made.shards() for row in range(start, end)]
    assert covered == list(range(1110))
    numbers = [number for split, number, *_ in made.shards() if split == "train"]
    assert numbers == list(range(len(numbers)))


def test_shards_are_near_the_size_asked_for() -> None:
    made = planned(entries(5000), shard_bytes=200_000)
    for _, _, start, end in made.shards()[:-1]:
        tar = sum(512 + -(-size // 512) * 512 for size in made.rows["size"][start:end].to_pylist())
        assert 0.98 * 200_000 < tar <= 1.02 * 200_000


def test_a_file_larger_than_a_shard_gets_one_and_no_number_is_left_out() -> None:
    made = planned([Entry("train", b"big", 10**6), *entries(20)], shard_bytes=10_000)
    numbers = [number for _, number, *_ in made.shards()]
    assert numbers == list(range(len(numbers)))


def test_the_order_of_classes_is_destroyed() -> None:
    labels = planned(entries(7000)).rows["label"].to_numpy()
    runs = int((np.diff(labels) != 0).sum()) + 1
    assert abs(runs - 7000 * 6 / 7) < 200  # as many runs as a random order has
    first = np.bincount(labels[:700], minlength=7)
    assert first.min() > 60


def test_another_seed_is_another_order_of_the_same_files() -> None:
    one, two = planned(entries(1000), seed=0), planned(entries(1000), seed=1)
    a, b = one.rows["src"].to_pylist(), two.rows["src"].to_pylist()
    assert sorted(a) == sorted(b)
    place = {name: i for i, name in enumerate(b)}
    moved = np.array([place[name] - i for i, name in enumerate(a)])
    assert len(set(moved.tolist())) > 500
    assert one.sha256 != two.sha256


def test_the_permutation_is_the_sorted_stream_of_splitmix64() -> None:
    stream = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # from seed 0
    expected = sorted(range(3), key=stream.__getitem__)
    names = [entry.src for entry in entries(3)]
    assert [row.src for row in rows_of(planned(entries(3)).rows)] == [names[i] for i in expected]


def test_options_and_what_is_in_the_source_change_the_digest() -> None:
    base = planned(entries(50), quality=95)
    assert planned(entries(50), quality=90).sha256 != base.sha256
    assert planned(entries(51), quality=95).sha256 != base.sha256
    renamed = [entries(50)[0]._replace(src=b"other"), *entries(50)[1:]]
    assert planned(renamed, quality=95).sha256 != base.sha256


def test_where_a_file_lies_does_not_change_the_digest() -> None:
    inside = [e._replace(archive="x.tar", offset=512 * i) for i, e in enumerate(entries(50))]
    assert planned(inside).sha256 == planned(entries(50)).sha256


def test_names_that_are_not_utf8_are_kept_as_bytes() -> None:
    made = planned([Entry("train", b"caf\xe9.jpg", 10)])
    assert [row.src for row in rows_of(made.rows)] == [b"caf\xe9.jpg"]


def test_an_empty_source_and_a_split_that_is_no_name_are_refused() -> None:
    with pytest.raises(ValueError, match="x: no images at the source"):
        planned([])
    with pytest.raises(ValueError, match="invalid split name '../up'"):
        planned([Entry("../up", b"a.jpg", 1)])


# --- at the output --------------------------------------------------------------------------------


def test_a_plan_is_found_again_where_it_was_published(tmp_path) -> None:
    made = planned(entries(100), quality=95)
    out = str(tmp_path)
    assert plans.load(out, "x", "images", made.options) is None
    plans.publish(out, made)
    plans.publish(out, made)
    again = plans.load(out, "x", "images", made.options)
    assert again is not None
    assert again.sha256 == made.sha256 and again.rows.equals(made.rows)


def test_an_output_begun_with_other_options_is_refused_by_the_first_that_differs(tmp_path) -> None:
    plans.publish(str(tmp_path), planned(entries(100), quality=95))
    other = planned(entries(100), quality=90)
    message = "was started with quality=95, now quality=90"
    with pytest.raises(ValueError, match=message):
        plans.publish(str(tmp_path), other)
    with pytest.raises(ValueError, match=message):
        plans.load(str(tmp_path), "x", "images", other.options)
    with pytest.raises(ValueError, match="was started from another source"):
        plans.publish(str(tmp_path), planned(entries(99), quality=95))


def test_a_folder_with_something_else_in_it_is_refused(tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"is not empty and not this set \(it has 'thesis.tex'\)"):
        plans.publish(str(tmp_path), planned(entries(1)))
    with pytest.raises(ValueError, match="is not empty and not this set"):
        plans.load(str(tmp_path), "x", "images", {})
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_plan_that_was_tampered_with_is_refused(tmp_path) -> None:
    made = planned(entries(100))
    plans.publish(str(tmp_path), made)
    other = tmp_path / "other"
    plans.publish(str(other), planned(entries(99)))
    (tmp_path / "plan.parquet").write_bytes((other / "plan.parquet").read_bytes())
    with pytest.raises(ValueError, match="plan.parquet does not match plan.json"):
        plans.load(str(tmp_path), "x", "images", made.options)
