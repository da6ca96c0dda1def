"""Real arrays, tables and files of other libraries: those in memory are taken, others are refused unread."""

import array
import io

import fastsoftmax as fs
import numpy as np
import pytest
from arrays import assert_same_bits
from fastsoftmax import reference

X = np.random.default_rng(5).normal(0, 3, (3, 4))


def taken(given, wanted=X):
    """Assert that `given` is taken, with the values of `wanted`."""
    assert_same_bits(fs.softmax(given), fs.softmax(wanted))
    assert_same_bits(reference.softmax(given), reference.softmax(wanted))


def refused(given, match):
    for module in (fs, reference):
        with pytest.raises(TypeError, match=match):
            module.softmax(given)
        with pytest.raises(TypeError, match=match):
            module.softmax([given])


def not_in_memory(given, how=r"indexing it with \[\.\.\.\]"):
    """Assert that `given` is refused, and that the advice in the message works."""
    refused(given, f"may not be in memory; .*{how}")
    taken(given.compute() if "compute" in how else given[...])


COMPUTE = r"its method compute\(\)"


def named(module):
    """A pattern for a message that names the module that takes the object as it is."""
    return rf"fastsoftmax\.{module} takes it as it is, or .*{COMPUTE}"


# Files


@pytest.mark.parametrize("options", [{}, {"chunks": (2, 2)}, {"compression": "gzip"}], ids=str)
def test_h5py_datasets_are_refused(tmp_path, options):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "file.h5", "w") as file:
        data = file.create_dataset("x", data=X, **options)
        not_in_memory(data)
    refused(data, "memory")  # closed


@pytest.mark.parametrize("options", [{}, {"chunks": (2, 2)}], ids=str)
def test_h5netcdf_variables_are_refused(tmp_path, options):
    h5netcdf = pytest.importorskip("h5netcdf")
    with h5netcdf.File(tmp_path / "file.nc", "w") as file:
        file.dimensions = {"row": 3, "class": 4}
        variable = file.create_variable("x", ("row", "class"), X.dtype, **options)
        variable[...] = X
        not_in_memory(variable)


@pytest.mark.parametrize("options", [{}, {"contiguous": True}, {"chunksizes": (2, 2), "zlib": True}], ids=str)
def test_netcdf4_variables_are_refused(tmp_path, options):
    netcdf = pytest.importorskip("netCDF4")
    with netcdf.Dataset(tmp_path / "file.nc", "w") as file:
        file.createDimension("row", 3)
        file.createDimension("class", 4)
        variable = file.createVariable("x", X.dtype, ("row", "class"), fill_value=99.0, **options)
        variable[:] = np.ma.masked_greater(X, 2)
        assert np.asarray(variable).max() == 99  # the fill value, which would win the softmax
        refused(variable, "memory")
        refused(variable[...], "masked")
        variable.set_auto_mask(False)
        variable[:] = X
        not_in_memory(variable)


@pytest.mark.parametrize("kind", ["create_array", "create_carray", "create_earray"])
def test_pytables_arrays_are_refused(tmp_path, kind):
    tables = pytest.importorskip("tables")
    with tables.open_file(tmp_path / "file.h5", "w") as file:
        not_in_memory(getattr(file, kind)("/", "x", obj=X))


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_nibabel_arrays_on_a_file_are_refused(tmp_path, suffix):
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(X, np.eye(4))
    taken(image.dataobj)  # still an array
    path = tmp_path / f"image.{suffix}"
    image.to_filename(path)
    not_in_memory(nibabel.load(path).dataobj)


def test_zarr_arrays_are_refused():
    zarr = pytest.importorskip("zarr")
    not_in_memory(zarr.array(X, chunks=(2, 2)))


def test_blosc2_arrays_are_refused():
    blosc2 = pytest.importorskip("blosc2")
    not_in_memory(blosc2.asarray(X))


def test_tensorstore_arrays_are_refused():
    tensorstore = pytest.importorskip("tensorstore")
    refused(tensorstore.array(X), "memory")


def test_a_memmap_is_taken(tmp_path):
    """It is NumPy's own array of a file, of which the system reads the pages that are used."""
    np.save(tmp_path / "x.npy", X)
    taken(np.load(tmp_path / "x.npy", mmap_mode="r"))


# Lazy graphs; xarray and pint around any array

strips_units = pytest.mark.filterwarnings("ignore:The unit of the quantity is stripped")  # pint's, and right


def test_dask_arrays_are_refused_with_the_name_of_their_module():
    dask_array = pytest.importorskip("dask.array")
    not_in_memory(dask_array.from_array(X, chunks=2), named("dask"))


def test_cubed_arrays_are_refused():
    cubed = pytest.importorskip("cubed")
    refused(cubed.from_array(X, chunks=(2, 2)), "memory")


def test_dask_dataframes_are_refused():
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")  # without it, dask has no DataFrames
    dask_dataframe = pytest.importorskip("dask.dataframe")
    not_in_memory(dask_dataframe.from_pandas(pandas.DataFrame(X), npartitions=1), COMPUTE)


@pytest.mark.parametrize("kind", ["DataArray", "Variable", "IndexVariable"])
def test_xarray_objects_on_numpy_are_taken(kind):
    xarray = pytest.importorskip("xarray")
    make = getattr(xarray, kind)
    given = X[0] if kind == "IndexVariable" else X
    dims = ["row", "class"][-given.ndim :]
    taken(make(given, dims=dims) if kind == "DataArray" else make(dims, given), given)


def test_xarray_objects_on_dask_are_refused():
    xarray = pytest.importorskip("xarray")
    dask_array = pytest.importorskip("dask.array")
    not_in_memory(xarray.DataArray(dask_array.from_array(X)), named("xarray"))
    not_in_memory(xarray.DataArray(X).chunk(), named("xarray"))
    not_in_memory(xarray.Variable(("row", "class"), dask_array.from_array(X)), COMPUTE)


@pytest.mark.parametrize("engine", ["scipy", "h5netcdf", "netcdf4"])
@pytest.mark.parametrize("cache", [True, False])
def test_xarray_objects_on_a_file_are_refused_until_they_are_loaded(tmp_path, engine, cache):
    xarray = pytest.importorskip("xarray")
    if engine != "scipy":
        pytest.importorskip({"netcdf4": "netCDF4"}.get(engine, engine))
    path = tmp_path / "file.nc"
    xarray.Dataset({"x": (("row", "class"), X)}).to_netcdf(path, engine=engine)
    with xarray.open_dataset(path, engine=engine, cache=cache) as data:
        for given in (data["x"], data["x"].variable, data["x"][:, :]):
            not_in_memory(given, COMPUTE)
            assert not given._in_memory
        data["x"].load()
        taken(data["x"])
    with xarray.open_dataset(path, engine=engine) as data:
        assert data["x"].values.shape == X.shape  # which caches the values
        taken(data["x"])


@strips_units
def test_pint_quantities_are_taken_unless_they_are_masked():
    pint = pytest.importorskip("pint")
    registry = pint.UnitRegistry()
    taken(registry.Quantity(X, "meter"))
    taken([registry.Quantity(row, "meter") for row in X])
    refused(registry.Quantity(np.ma.array(X), "meter"), "masked")


@strips_units
def test_pint_and_xarray_around_dask_are_refused():
    pint = pytest.importorskip("pint")
    xarray = pytest.importorskip("xarray")
    dask_array = pytest.importorskip("dask.array")
    registry = pint.UnitRegistry()
    taken(xarray.DataArray(registry.Quantity(X, "meter")))
    lazy = registry.Quantity(dask_array.from_array(X), "meter")
    not_in_memory(lazy, COMPUTE)
    not_in_memory(xarray.DataArray(lazy), COMPUTE)


# In memory


def test_pyarrow_arrays_and_tables_of_numbers_are_taken():
    pyarrow = pytest.importorskip("pyarrow")
    columns = {f"c{k}": column for k, column in enumerate(X.T)}
    table = pyarrow.table(columns)
    taken(table)
    taken(pyarrow.concat_tables([table[:1], table[1:]]))
    taken(pyarrow.record_batch(columns))
    taken(pyarrow.Tensor.from_numpy(X))
    taken(pyarrow.chunked_array([X[0][:1], X[0][1:]]), X[0])
    taken(table["c0"], X[:, 0])
    taken(pyarrow.array([1.0, None, 3.0]), np.array([1.0, np.nan, 3.0]))
    taken(pyarrow.chunked_array([[1], [None, 3]]), np.array([1.0, np.nan, 3.0]))
    refused(pyarrow.array([True, None]), r"type pyarrow\.lib\.BooleanArray")


def test_polars_frames_are_taken_unless_they_are_lazy():
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame(X)
    taken(frame)
    taken(frame["column_1"], X[:, 1])
    taken(polars.DataFrame({"a": [1, None], "b": [True, False]}), np.array([[1, 1], [np.nan, 0]]))
    refused(frame.lazy(), r"type polars\..*LazyFrame")


def test_buffers_are_taken():
    taken(memoryview(X))
    taken(array.array("d", X[0]), X[0])
    taken([array.array("d", row) for row in X])
    taken(io.BytesIO(X[0].tobytes()).getbuffer().cast("d"), X[0])


def test_onnxruntime_values_are_taken():
    onnxruntime = pytest.importorskip("onnxruntime")
    taken(onnxruntime.OrtValue.ortvalue_from_numpy(X))


def test_dense_torch_tensors_without_gradients_are_taken():
    torch = pytest.importorskip("torch")
    taken(torch.from_numpy(X))
    taken([torch.from_numpy(row) for row in X])
    refused(torch.from_numpy(X).requires_grad_(), r"x does not make an array: .*detach\(\)")
    refused(torch.from_numpy(X).to_sparse(), r"x does not make an array: .*to_dense\(\)")


def test_jax_arrays_are_taken_unless_they_are_traced():
    jax = pytest.importorskip("jax")
    x = X.astype(np.float32)
    taken(jax.numpy.asarray(x), x)
    with pytest.raises(TypeError, match="x does not make an array"):
        jax.jit(fs.softmax)(x)


def test_unyt_arrays_are_taken():
    unyt = pytest.importorskip("unyt")
    taken(unyt.unyt_array(X, "m"))


# Masks


def test_astropy_arrays_are_taken_unless_they_are_masked():
    pytest.importorskip("astropy")
    from astropy.nddata import CCDData, NDDataArray
    from astropy.table import Column, MaskedColumn
    from astropy.units import Quantity
    from astropy.utils.masked import Masked

    for masked in (Masked(X, mask=X > 2), Masked(Quantity(X, "m")), NDDataArray(X, mask=X > 2), MaskedColumn(X[0])):
        refused(masked, "masked")
        with pytest.raises(TypeError, match="masked"):
            fs.logsumexp(X, b=masked)
    with pytest.raises(TypeError, match="without a mask"):
        fs.softmax(X, out=Masked(X.copy(), mask=X > 2))
    with pytest.raises(TypeError, match="temperature"):
        fs.softmax(X, temperature=Masked(0.5, mask=True))
    for plain in (Quantity(X, "m"), NDDataArray(X), CCDData(X, unit="adu")):
        taken(plain)
    taken(Column(X[0]), X[0])


def test_awkward_arrays_are_taken_unless_entries_are_missing():
    awkward = pytest.importorskip("awkward")
    taken(awkward.Array(X))
    for option in (awkward.Array([1.0, None, 99.0]), awkward.mask(awkward.Array(X), X < 2)):
        with pytest.raises((TypeError, ValueError), match=r"x does not make an array: .*Masked"):
            fs.softmax(option)


# Objects that are no arrays


@pytest.mark.parametrize(
    "kind", ["csr_array", "csc_matrix", "coo_array", "dok_matrix", "lil_array", "bsr_array", "dia_matrix"]
)
def test_scipy_sparse_arrays_are_refused(kind):
    sparse = pytest.importorskip("scipy.sparse")
    given = getattr(sparse, kind)(np.eye(3))
    refused(given, rf"sparse matrix of type scipy\.sparse\._\w+\.{kind}; .* method toarray\(\)")
    taken(given.toarray(), np.eye(3))


def test_pydata_sparse_arrays_are_refused():
    sparse = pytest.importorskip("sparse")
    refused(sparse.COO.from_numpy(X), "x does not make an array: .*sparse.*todense")


def test_floating_labels_of_xgboost_and_lightgbm_are_refused():
    labels = np.array([0, 2, 1])
    for library, make in (("xgboost", "DMatrix"), ("lightgbm", "Dataset")):
        data = getattr(pytest.importorskip(library), make)(X, label=labels)
        if library == "lightgbm":
            data.construct()
        refused(data, rf"of type {library}\.\w+\.{make}\b")
        given = data.get_label()
        assert given.dtype == np.float32
        with pytest.raises(ValueError, match=r"must be integers: numpy\.asarray\(targets, int\)"):
            fs.cross_entropy(X, given)
        assert fs.cross_entropy(X, np.asarray(given, int)) == fs.cross_entropy(X, labels)


# DataFrames


FRAMES = {
    "Float64": lambda pd: pd.DataFrame(X).astype("Float64"),
    "Float32": lambda pd: pd.DataFrame(X).astype("Float32"),
    "Int64": lambda pd: pd.DataFrame(X.astype(int)).astype("Int64"),
    "convert_dtypes": lambda pd: pd.DataFrame(X).convert_dtypes(),
    "Float64 with NA": lambda pd: pd.DataFrame([[1, 2.5], [pd.NA, 3]]).astype("Float64"),
    "Int8 with NA": lambda pd: pd.DataFrame([[1, 2], [pd.NA, 3]]).astype("Int8"),
    "int and bool": lambda pd: pd.DataFrame({"a": [1, 2], "b": [True, False]}),
    "float16 and bool": lambda pd: pd.DataFrame({"a": np.float16([1, 2]), "b": [True, False]}),
    "Int64, float, bool and boolean": lambda pd: pd.DataFrame(
        {"a": pd.array([1, pd.NA]), "b": [0.5, np.nan], "c": [True, False], "d": pd.array([True, pd.NA])}
    ),
    "boolean": lambda pd: pd.DataFrame(X).astype("Float64") > 0,
    "a column": lambda pd: pd.Series([1, 2], dtype="Int64"),
    "a column with NA": lambda pd: pd.Series([1.5, pd.NA], dtype="Float64"),
    "a column of boolean with NA": lambda pd: pd.Series([True, pd.NA], dtype="boolean"),
    "an array with NA": lambda pd: pd.array([True, pd.NA]),
    "an index with NA": lambda pd: pd.Index([1, pd.NA], dtype="Int64"),
}
ARROW_FRAMES = {
    "double": lambda pd: pd.DataFrame(X).astype("double[pyarrow]"),
    "double with NA": lambda pd: pd.DataFrame([[1, 2.5], [pd.NA, 3]]).astype("double[pyarrow]"),
    "int64 with NA": lambda pd: pd.DataFrame([[1, 2], [pd.NA, 3]]).astype("int64[pyarrow]"),
    "convert_dtypes": lambda pd: pd.DataFrame(X).convert_dtypes(dtype_backend="pyarrow"),
    "bool beside Int64": lambda pd: pd.DataFrame(
        {"a": pd.array([True, None], "bool[pyarrow]"), "b": pd.array([1, pd.NA])}
    ),
}


def check_frame(frame):
    wanted = frame.to_numpy(float)
    for module in (fs, reference):
        assert_same_bits(module.softmax(frame), module.softmax(wanted))
        assert_same_bits(module.softmax([frame, frame]), module.softmax([wanted, wanted]))
        assert_same_bits(module.softmax_grad(wanted, frame), module.softmax_grad(wanted, wanted))
        assert module.logsumexp(X[:1, :1], b=frame).dtype == np.float64


@pytest.mark.parametrize("make", FRAMES.values(), ids=FRAMES)
def test_a_frame_is_taken_as_its_array_of_floats(make):
    check_frame(make(pytest.importorskip("pandas")))


@pytest.mark.parametrize("make", ARROW_FRAMES.values(), ids=ARROW_FRAMES)
def test_a_frame_on_arrow_is_taken_as_its_array_of_floats(make):
    pytest.importorskip("pyarrow")
    check_frame(make(pytest.importorskip("pandas")))


def test_a_frame_with_a_single_numpy_dtype_keeps_it():
    pandas = pytest.importorskip("pandas")
    for dtype in (np.float32, np.float16, np.int8, bool):
        frame = pandas.DataFrame(X.astype(dtype))
        assert_same_bits(fs.softmax(frame), fs.softmax(X.astype(dtype)))


def test_a_frame_of_booleans_is_taken_as_where():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X).astype("Float64")
    assert_same_bits(fs.softmax(frame, where=frame > 0), fs.softmax(X, where=X > 0))
    for wrong in (frame, frame.astype("boolean").astype("Int64"), pandas.DataFrame({"a": [1], "b": [True]})):
        with pytest.raises(TypeError, match=r"^where .*"):
            fs.softmax(X, where=wrong)
    frame.iloc[0, 0] = pandas.NA
    with pytest.raises((TypeError, ValueError), match=r"^where does not make an array"):
        fs.softmax(X, where=frame > 0)


def test_frames_are_taken_as_probabilities_and_weights():
    pandas = pytest.importorskip("pandas")
    p = fs.softmax(X)
    got = fs.cross_entropy(
        pandas.DataFrame(X).astype("Float64"),
        pandas.DataFrame(p).astype("Float64"),
        weight=pandas.Series([1, 2, 3, 4], dtype="Int64"),
    )
    assert got == fs.cross_entropy(X, p, weight=[1, 2, 3, 4])


NO_NUMBERS = {
    "text": lambda pd: {"a": ["1", "2"]},
    "category": lambda pd: {"a": pd.Categorical(["x", "y"])},
    "date": lambda pd: {"a": pd.to_datetime(["2020-01-01", "2020-01-02"])},
    "timedelta": lambda pd: {"a": pd.to_timedelta([1, 2])},
    "complex": lambda pd: {"a": [1j, 2j], "c": pd.array([1, 2])},
    "object": lambda pd: {"a": pd.Series([1, 2.5], dtype=object)},
}


@pytest.mark.parametrize("make", NO_NUMBERS.values(), ids=NO_NUMBERS)
def test_a_frame_with_a_column_that_holds_no_numbers_is_refused_by_its_type(make):
    pandas = pytest.importorskip("pandas")
    refused(pandas.DataFrame(make(pandas) | {"b": [1.0, 2.0]}), r"type pandas\..*DataFrame")
