"""The commands: where each is, what `--help` says of it, and under which heading."""

from __future__ import annotations

# Every command, a function in the module of its name in `commands`, and its line in `--help`.
COMMANDS = {
    "train": "one run: train, evaluate, write result.json in run_dir",
    "plan": "memory of a run's step, whether it fits the card, what saves",
    "sweep": "many runs: key=value,value,... for any config key, --out DIR; ends with compare",
    "compare": "table, plots and report.html of a sweep's folder",
    "mlflow": "all runs in a browser, and the charts of the latest sweep",
    "world": "make the toy world's data and pre-trained parts again",
    "config": "print the resolved config of a run",
    "data": "LLaVA JSON, images and videos to shards; their check, their counts",
    "convert": "weights of LLaVA and of the official release to ours, and back",
    "merge": "a run with adapters as one plain model: llava-mini merge RUN DST",
    "ask": "answer questions about images and videos",
    "chat": "the same in the terminal, with history: llava-mini chat MODEL",
    "batch": "many requests from a file, batched, resumable",
    "bench": "measure this program on this machine",
    "completion": 'for your shell: eval "$(llava-mini completion bash)", or zsh',
    "doctor": "what is installed, whether it drives the card found, what to install instead",
}
STRICT, OUT = "--strict", "--out"
# Commands that parse their own --flags instead of a config's key=value.
WITH_FLAGS = ("plan", "mlflow", "data", "convert", "merge", "ask", "chat", "batch", "bench", "doctor", "completion")
# Commands that read a config, and what their own --help says first.
CONFIGURED = {
    "train": """usage: llava-mini [--config-dir FOLDER] train [--strict] [key=value ...]

Trains one run, evaluates it on validation and test, and writes result.json and the model to run_dir. A run that was
interrupted or killed continues when the command is repeated. --strict ends with status 2 before anything is loaded if,
as planned, a step does not fit the card.

  llava-mini train compressor.C=4 run_dir=runs/mine
  llava-mini train compressor=avg_pool fusion.num_layers=0 trainer.max_steps=600""",
    "sweep": """usage: llava-mini [--config-dir FOLDER] sweep [--out DIR] [key=value,value,... ...]

Trains every combination of the given values, each as a run of its own, and compares them. The reference (all patches,
no pre-fusion) is added. Finished runs are kept in DIR (default: sweeps/latest); repeat the command to continue, or to
add values.

  llava-mini sweep compressor.C=1,4 seed=0,1,2
  llava-mini sweep compressor=query,avg_pool fusion.num_layers=0,4 seed=0,1,2 --out sweeps/mine""",
    "compare": """usage: llava-mini compare [FOLDER]

Writes table, plots, report.html, results.csv and results.json of a sweep again. FOLDER is the default sweep's if it is
left out.""",
    "world": """usage: llava-mini world [key=value ...]

Makes the three checkpoints of the toy world again from the seed: vision tower, aligned and uncompressed model.""",
    "config": """usage: llava-mini [--config-dir FOLDER] config [key=value ...]

Prints the config that a run would use, and trains nothing.""",
}
HEADINGS = {
    "prepare": ("data", "convert", "world", "doctor", "completion"),
    "train": ("train", "plan", "merge"),
    "compare": ("sweep", "compare", "mlflow", "config"),
    "use": ("ask", "chat", "batch"),
    "measure": ("bench",),
}
VALUES = r"""values (key=value of train, plan, sweep, world, config):
  "run_dir=~/runs/lr=1e-4 (1)"   a path, name or URI as it is typed; ~ is a home, ${key} the value of another key
  seed=3 data.features=false     numbers, true and false
  data.cache_dir=null            none
  "model.weights=[~/a, b=1]"     a list; paths and names in it are as they are typed, but for commas
  "data.train={a: 0.9, b: 0.1}"  names of letters, digits and . / - _, with a value each
  'tracking.experiment="a, b"'   text in quotes of its own within the shell's: where a sweep would read two values,
                                 where text would be null, and for other keys if it has other characters than those"""
