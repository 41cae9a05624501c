"""Everything that is true without Ray: the record, storage, image and mask work, models, reports. Imports nothing of ours but itself."""
