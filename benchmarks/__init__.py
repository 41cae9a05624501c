"""Scripts that measure; each prints one table. Figures are ratios within one run: other work on the machine changes the rest."""
