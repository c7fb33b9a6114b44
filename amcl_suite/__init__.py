"""Learning several hypotheses at once, and machine listening.

Several hypotheses compete for data; one rule of assignment decides who learns from what.

amcl_suite.mcl          assignment rules, schedules, losses, networks, theory, regression
amcl_suite.separation   speech separation: objectives, corpora, models, training, evaluation
amcl_suite.ensembles    independent to joint ensembles, their diagnostics, scikit-learn estimators
amcl_suite.objects      scenes of objects, slots that compete for pixels, decompositions
amcl_suite.interactive  streams, questions to an expert, corrections, drift, the session loop
amcl_suite.audition     rooms to hear and move in, agents that find sounds, separation by moving
amcl_suite.core         data, training, run records, statistics, tables and plots for all of them
amcl_suite.reproduce    jobs, runs on one machine or a cluster, reports, documentation

A part is loaded on first use: after `import amcl_suite`, `help(amcl_suite.mcl.assignment.annealed)`
tells shape and unit of every parameter. The command `amcl` runs experiments; the documentation is
at https://amcl-suite.github.io/amcl_suite/.
"""
# Written by hand: the one module that no notebook exports; `nbdev_export` keeps its version current.
__version__ = "0.1.0"

from .core.help import install

install(__name__)
del install
