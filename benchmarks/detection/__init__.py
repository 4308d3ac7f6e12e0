"""How often each rule sees a real fault and how often it sees one that is not there.

``python -m benchmarks.detection`` trains small models of the architectures people use (torch and
Keras), damages them in the ways that the rules are about, writes every one of them to disk in one
of the formats people use, and lets `ckptdoctor` judge the files.

- `tasks`, `torch_models`, `keras_models`: what is learnt, and by which architectures.
- `patients`: what a trained model offers to be damaged, and what a fault is.
- `torch_patient`, `keras_patient`: training, introspection and writing of one framework's models.
- `faults`, `state_faults`, `lived`: faults of weights; of training state, precision and
  configuration; faults made by really running what causes them.
- `controls`: healthy files, every known trap among them.
- `score`, `reasons`: what counts as detected; why the rest is not.
- `run`, `table`, `page`: one model from training to verdicts; the printed table; the docs page.
"""
