"""A trainer that has nothing to do with EM: logistic regression on random features, which the seed draws."""

import json
import sys

import numpy as np

run = json.load(sys.stdin)
p, data, rng = run["params"], np.random.default_rng(0), np.random.default_rng(run["seed"])
x = data.normal(size=(1200, 2))
y = (x.prod(1) > 0) ^ (data.random(1200) < 0.05)  # which quadrant; one label in twenty is wrong
h = np.cos(x @ rng.normal(size=(2, p["width"])) + rng.uniform(0, 2 * np.pi, p["width"]))
w = np.zeros(p["width"])
for step in range(run["training"]["max_steps"] + 1):
    if step > 0:
        batch = rng.integers(0, 1000, 32)
        z = h[batch] @ w
        w += p["learning_rate"] * h[batch].T @ (y[batch] - (1 + np.tanh(z / 2)) / 2) / 32
        loss = float(np.logaddexp(0, np.where(y[batch], -z, z)).mean())
        print(json.dumps({"kind": "metrics", "step": step, "values": {"loss": loss}}))
    right = "".join("01"[int(r)] for r in (h[1000:] @ w > 0) == y[1000:])
    for e in run["evaluations"]:
        if step in e["steps"]:
            print(json.dumps({"kind": "eval", "step": step, "eval_id": e["eval_id"], "outcomes": right}))
