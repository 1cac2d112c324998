"""Does anything crash, does anything lie? `docs/reliability.md` says what each file shows and how to run the
long forms.
"""
