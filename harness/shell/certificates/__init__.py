"""Certificates: proofs that a network is the same in several frameworks, and comparisons of their scores.

certify      train the cases in every framework, and compare the traces
store        the certificate, its verdicts, and the files in the results folder
tables       certificates as a table
accuracy     whole trainings in float32, compared over seeds
equivalence  the statistical test for that
"""
