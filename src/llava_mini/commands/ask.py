"""`llava-mini ask MODEL --image/--video PATH --question "..."`: independent questions about images and videos."""

from __future__ import annotations

import sys
import time
from typing import Any

from llava_mini.command_line.asking import (
    FLAGS,
    LESS_MEMORY,
    add_media,
    add_session,
    add_source,
    load_model,
    open_session,
    opened,
    parser_for,
)
from llava_mini.command_line.output import json_line
from llava_mini.errors import UserError, named_as
from llava_mini.out_of_memory import oom_as_user_error

_DESCRIPTION = """\
Shows the model images and videos and asks it about them. All of them are encoded once, then every question is asked
by itself: it does not know of those before it. Prints an answer a line; with --json one object a question, with
question, answer, seconds (of the answer alone) and frames, and note where a video stops before its end: it is then
answered on what could be read."""

_EXAMPLES = """\
examples:
  llava-mini ask runs/mine/model --image photo.jpg --question "What is on the table?"
  llava-mini ask runs/mine/model --video film.mp4 --frames 64 --question "Who comes in?" --question "Why?" --json"""


@named_as(FLAGS)
@oom_as_user_error(LESS_MEMORY)
def ask(arguments: list[str], _config_dirs: tuple[str, ...] = ()) -> int:
    """Run the command.

    Raises:
        UserError: a file, the model or a question cannot be used, or the device or host is out of memory.
    """
    parser = parser_for("ask", _DESCRIPTION, _EXAMPLES)
    add_media(parser)
    add_session(parser)
    parser.add_argument(
        "--question", action="append", required=True, metavar="TEXT", help="any number of times, each by itself"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a question")
    given = parser.parse_args(arguments)
    if not all(question.strip() for question in given.question):
        raise UserError("--question: the question is empty", key="--question", value="")
    shown = opened(given)

    model, processor = load_model(given)
    from llava_mini.inference.long_context import check_length
    from llava_mini.inference.prompts import check_question, question_tokens

    asked = [check_question(question, processor) for question in given.question]
    session = open_session(given, model, processor)
    kinds = [look.kind for look in session.media] + [kind for kind, _ in given.shown]
    longest = max(question_tokens(processor, question, kinds) for question in asked)
    check_length(model.config, longest, given.max_new_tokens)  # else the error would blame the images and videos
    for source in shown:
        add_source(session, source, given, longest + given.max_new_tokens)
    if given.save is not None:
        session.save(given.save)
    about: dict[str, Any] = {"frames": sum(look.frames for look in session.media)}
    if notes := [look.stopped for look in session.media if look.stopped]:
        about["note"] = "; ".join(notes)
        print(f"answers are about what could be read: {about['note']}", file=sys.stderr)
    for question in given.question:
        begun = time.perf_counter()
        answer = session.ask(question, follow_up=False, max_new_tokens=given.max_new_tokens)
        seconds = round(time.perf_counter() - begun, 4)
        record = {"question": question, "answer": answer, "seconds": seconds, **about}
        print(json_line(record) if given.json else answer, flush=True)
    return 0
