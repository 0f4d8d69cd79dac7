"""From import to a plotted curve, as in a notebook."""

import trb_mlx

run = trb_mlx.train("small", overrides={"run.name": "notebook"}, progress=True)
print(trb_mlx.generate(run.path, "Compute (12+7-5)*3."))
print(trb_mlx.evaluate(run.path, overrides={"eval.prompts": 512}).metrics["pass@1"])

metrics = trb_mlx.load_metrics(run.path)
axes = metrics["eval/pass@1"].dropna().plot(marker="o", ylabel="pass@1, held out")
axes.figure.savefig("curve.png")

trb_mlx.export(run.path, to="peft")
