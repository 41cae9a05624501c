"""RORem's loop of people, discriminator and remover, without Ray: settings, steps, ledger, samples, threshold, table."""
