"""A hierarchy on vectors: three levels on a table of 30 measurements of breast tumours, no images."""

import torch
import typer
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import QuantileTransformer

import halikit as hk
from halikit.analysis.labels import label_scores
from halikit.config import Config, override


def table() -> hk.data.DataSet:
    """The 569 rows in a random order, every column with a standard normal distribution; the last 114 held out."""
    x, y = load_breast_cancer(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    normal = QuantileTransformer(n_quantiles=400, output_distribution="normal").fit(x[order[:455]])
    rows = torch.tensor(normal.transform(x), dtype=torch.float32).clamp(-3, 3)[order]
    part = hk.data.Split(rows, torch.tensor(y)[order])
    return hk.data.DataSet("breast cancer", (30,), ("malignant", "benign"), part[:455], None, part[455:])


def main(steps: int = 4000) -> tuple[float, ...]:
    """Train; returns the share of held-out rows that keep their diagnosis when rebuilt from each level."""
    torch.manual_seed(0)
    data = table()
    hierarchy = hk.ladder(3, data.shape, widths=(16, 8, 4), hidden=128)
    model = hk.Model(hierarchy, hk.build_discriminator(hierarchy, width=128, input_noise=0.3))
    rates = {"learning_rate": 4e-4, "discriminator_learning_rate": 1.6e-3}
    settings = override(Config(), rates | {"steps": steps, "threads": 1})
    trainer = hk.Trainer(model, data, settings=settings)
    trainer.fit()

    scores = label_scores(trainer.averaged, data)
    for level, kept in enumerate(scores.kept, 1):
        print(f"z{level}: {kept:.2f} of the diagnoses survive (of the rows themselves: {scores.reference:.2f})")
    with torch.no_grad():
        samples = trainer.averaged.sample(2000)
    off = (torch.corrcoef(samples.T) - torch.corrcoef(data.train.images.T)).abs().mean().item()
    print(f"correlations between the columns of samples are off by {off:.2f} on average")
    return scores.kept


if __name__ == "__main__":
    typer.run(main)
