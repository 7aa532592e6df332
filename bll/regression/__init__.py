"""Real-valued targets: exits that decode a latent into a mean and a variance of every value, and what belongs to them.

decoders.py      p_k(y | z_k), a Gaussian for each value
objective.py     local losses, and the prediction of all exits
scores.py        errors, likelihood, coverage, how variances rank errors
calibration.py   variances and intervals that hold on validation rows; torch is not imported there
model.py         the trained network
"""
