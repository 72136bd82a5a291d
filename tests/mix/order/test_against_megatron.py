"""Rows and labels of `order: megatron` beside those of megatron-core itself, where it is installed.

`pip install --no-deps megatron-core` is enough; it needs no GPU for its datasets.
"""

import warnings

import numpy as np
import pytest

from deepen.formats.tokens.megatron import IndexedDatasetWriter
from deepen.mix.config import MixConfig
from deepen.mix.stage import mix
from deepen.train.batches.read import Batches

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("megatron.core", reason="megatron-core is not installed")

LENGTH, ROWS, SEED = 16, 200, 1234


class Tokenizer:
    """What megatron-core asks of a tokenizer to build a dataset."""

    unique_identifiers = {"class": "none"}
    eod, pad, vocab_size = 0, -1, 97


@pytest.fixture(scope="module")
def process_group():
    import torch.distributed as distributed

    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    yield
    distributed.destroy_process_group()


def megatron_rows(folder, sources: dict[str, float]) -> list[tuple[list[int], list[int]]]:
    """Tokens and labels of the samples that Megatron-LM would train, in their order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
        from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    prefixes, weights = [str(folder / "shards" / name) for name in sources], list(sources.values())
    config = GPTDatasetConfig(
        random_seed=SEED, sequence_length=LENGTH, blend=(prefixes, weights if len(weights) > 1 else None),
        split="1,0,0", tokenizer=Tokenizer(), reset_position_ids=False, reset_attention_mask=False,
        eod_mask_loss=False, path_to_cache=str(folder / "cache"), mid_level_dataset_surplus=0.005,
    )  # fmt: skip
    dataset, _, _ = BlendedMegatronDatasetBuilder(GPTDataset, [ROWS, 0, 0], lambda: True, config).build()
    samples = [dataset[number] for number in range(ROWS)]
    return [(sample["tokens"].tolist(), sample["labels"].tolist()) for sample in samples]


@pytest.mark.parametrize("sources", [{"papers": 1.0}, {"papers": 0.75, "web": 0.25}])
def test_every_row_is_the_one_that_megatron_trains(process_group, make_job, sources: dict[str, float]) -> None:
    random = np.random.default_rng(0)
    lengths = {"papers": random.integers(3, 60, 50).tolist(), "web": random.integers(5, 90, 30).tolist()}
    roles = {"papers": "domain", "web": "replay"}
    job = make_job("out", seed=SEED, **{name: (roles[name], lengths[name]) for name in sources})
    tokenize = job.inputs["tokenize"].path
    for name in sources:
        with IndexedDatasetWriter(tokenize / "shards" / name, np.uint16) as writer:
            tokens = random.integers(1, 97, sum(lengths[name])).astype(np.uint16)
            writer.add_documents(tokens, np.array(lengths[name]))
    config = MixConfig(sequence_length=LENGTH, order="megatron", max_epochs=16, domain_share=sources["papers"])
    mix(config, job, batch_tokens=4 * LENGTH, num_batches=ROWS // 4)
    batches = Batches.open(tokenize, job.out)
    ours = [
        (batches[number].tokens_BT[row].tolist(), batches[number].labels_BT[row].tolist())
        for number in range(ROWS // 4)
        for row in range(4)
    ]
    assert ours == megatron_rows(tokenize, sources)
