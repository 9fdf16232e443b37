"""A process with a loader whose workers have made batches; tests kill it. Argument: a shard set.

Prints its workers' numbers when the first batch is there, and then waits.
"""

import multiprocessing
import sys
import time

from llava_mini.data.format.shard_set import ShardSet
from llava_mini.data.stream.order import ShuffledOrder
from llava_mini.data.stream.pixels import PixelTransform
from llava_mini.data.stream.samples import SampleReader
from llava_mini.data.stream.stream import BatchLoader, PlannedStream
from llava_mini.data.text.labels import ConversationTokenizer
from llava_mini.data.text.templates import TINY
from llava_mini.data.toyworld.tokenizer import build_tokenizer
from llava_mini.token_layout import TokenLayout


def main(folder: str) -> None:
    tokenize = ConversationTokenizer(build_tokenizer(), TINY, turns="independent", layout=TokenLayout(2, 2))
    reader = SampleReader(ShardSet(folder), tokenize, transform=PixelTransform(32))
    stream = PlannedStream([reader], ShuffledOrder([reader.shards], 0), batch_size=2, num_batches=10**6)
    batches = iter(BatchLoader(stream, num_workers=2))
    next(batches)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(60)


if __name__ == "__main__":
    main(sys.argv[1])
