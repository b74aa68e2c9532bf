"""The run file: one HDF5 file with everything that a run measured. h5py is imported only in here."""
