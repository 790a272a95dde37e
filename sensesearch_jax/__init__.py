"""SenseSearch in JAX: a vision-language policy that zooms, searches and answers, trained by SFT and
BN-GSPO.
"""
