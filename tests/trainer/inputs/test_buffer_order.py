"""The order of runs from before there were lanes: what their version read, it reads today."""

import pytest
import scene_data

from sigline.trainer import config
from sigline.trainer.inputs import data

# Keys of the records of some steps, as the last version without lanes gave them.
ONE = {
    1: "024 016 038 042 017 030 044 046",
    2: "088 012 023 035 000 020 074 066",
    13: "003 062 043 095 075 083 035 010",
    40: "047 039 070 044 084 019 053 066",
}
MIXED = {
    1: "024 016 038 042 008 017 010 030",
    14: "000 036 027 083 076 025 008 033",
    40: "026 066 010 007 037 056 053 000",
}


@pytest.fixture(scope="module")
def settings():
    tiny = config.tiny(config.load_recipe("siglip_demo"))
    return config.override(tiny, ["data.lanes=none"])


@pytest.mark.parametrize("step", ONE)
def test_order_of_one_folder_is_that_of_before(split_dir, settings, step):
    assert " ".join(data.batch_keys(split_dir, settings, number=step)) == ONE[step]


@pytest.mark.parametrize("step", MIXED)
def test_order_of_a_mixture_is_that_of_before(split_dir, scene_records, settings, tmp_path, step):
    other = scene_data.write_split(tmp_path, scene_records[:30])
    weighted = config.override(settings, ["data.mixture=[3, 1]"])
    assert " ".join(data.batch_keys([split_dir, other], weighted, number=step)) == MIXED[step]


def test_hosts_get_every_so_many_records(split_dir, settings):
    dataset = data._records(split_dir, settings, first_step=12, num_hosts=2, host=1)
    whole = data._records(split_dir, settings, first_step=12)
    numbers = [int(number) for number, _ in whole.take(16)]
    assert [int(number) for number, _ in dataset.take(8)] == numbers[1::2]
