import math
import multiprocessing

from shards.pool import map_unordered


def test_no_worker_outlives_the_jobs_so_the_program_can_end():
    assert sorted(map_unordered(math.sqrt, iter([4.0, 9.0]), 2)) == [2.0, 3.0]
    assert multiprocessing.active_children() == []


def test_no_worker_outlives_a_reader_that_stops_early():
    ended = map_unordered(math.sqrt, iter([4.0] * 50), 2)
    assert next(ended) == 2.0
    ended.close()
    assert multiprocessing.active_children() == []
