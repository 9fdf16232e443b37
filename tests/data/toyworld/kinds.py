"""Every kind of question that the toy world asks."""

FACT_KINDS = ("color", "shape", "digit", "count", "exist", "where")
DENSE_KINDS = ("digits", "colors", "objects")
CLIP_KINDS = (
    "clip_moved", "clip_move", "clip_first", "clip_last", "clip_changes", "clip_color", "clip_story", "clip_path"
)  # fmt: skip
TEXT_KINDS = ("text_color", "text_shape", "text_where", "text_count", "text_exist", "text_copy")
