"""`llava-mini batch MODEL --input requests.jsonl --output answers.jsonl`: many requests, one per line."""

from __future__ import annotations

from pathlib import Path

from llava_mini.command_line.asking import FLAGS, load_model, parser_for
from llava_mini.command_line.parser import at_least
from llava_mini.errors import refused
from llava_mini.out_of_memory import oom_as_user_error

_DESCRIPTION = """\
Answers the requests of a file, those of about the same length together. A request is a JSON object on a line:

  {"id": "a7", "image": "photos/a.jpg", "question": "What is on the table?"}
  {"image": ["a.jpg", "b.jpg"], "video": "clip.mp4", "question": "What do they have in common?"}

image and video are a path or a list of paths, relative ones in the folder of the requests, and may be left out. The
id, a text or a whole number, is the line's number where none is given, and no two requests have the same.

Of each request one line is added to the answers, with what was asked, in the order in which they are finished:

  {"id": "a7", "image": "photos/a.jpg", "question": "What is on the table?", "answer": "Two apples."}
  {"id": 2, "image": "b.jpg", "question": "And here?", "error": "b.jpg: No such file or directory"}

A video that stops in the middle is answered on what was read, and "note" says so. A run that is killed goes on where
it was when the command is given again: no request is lost, none is answered twice, failed ones neither (delete their
lines to have them tried again). Where a request has changed under its id, the earlier answer is not taken for one to
it, and the command ends: give ids of your own where lines are to be put in between. Answers do not depend on the batch
size, but for ties within rounding. A request with more than 512 frames is answered by itself in a session, as `ask`
does; --kv-bits is for those alone."""


def batch(arguments: list[str], _config_dirs: tuple[str, ...] = ()) -> int:
    """Run the command; it returns 0 even if requests failed, which the last printed line counts.

    Raises:
        UserError: there is no model, no memory for it or no request, or the answers belong to other requests or cannot
            be written.
    """
    parser = parser_for("batch", _DESCRIPTION)
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="the requests")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the answers; made, or continued")
    parser.add_argument("--batch-size", type=at_least(1), default=8, metavar="N", help="requests at once (default: 8)")
    given = parser.parse_args(arguments)

    from llava_mini.inference.requests import open_answers, read_requests

    requests = read_requests(given.input)
    if given.output.exists() and given.output.samefile(given.input):
        raise refused("--output", given.output, "the requests are in this file; name another")
    with open_answers(given.output, requests) as answers:
        before = len(answers.answered) + len(answers.failed)
        if before < len(requests):
            from tqdm import tqdm

            from llava_mini.inference.batch import Batcher

            with oom_as_user_error("--dtype bfloat16 needs less"):
                model, processor = load_model(given)
            choices = {"fps": given.fps, "count": given.frames, "kv_bits": given.kv_bits}
            batcher = Batcher(model, processor, given.batch_size, given.max_new_tokens, names=FLAGS, **choices)
            with tqdm(total=len(requests), initial=before, unit=" requests", disable=None) as bar:
                batcher.run(requests, answers, bar.update)
        earlier = f" ({before} of them earlier)" if before else ""
        print(f"{len(answers.answered)} answered, {len(answers.failed)} failed{earlier}; {given.output}")
    return 0
