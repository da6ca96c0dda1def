// A Python function with a shortcut: a C function that is tried first and takes the calls that it knows.
#pragma once

#include <Python.h>

namespace fastsoftmax {

// Takes arguments as a vectorcall brings them. Returns null without an error if the call is for the Python function.
using Shortcut = PyObject* (*)(PyObject* const* given, Py_ssize_t count, PyObject* names);

// Returns a new object that is called like `function`, or null with an error set. To its users it is that function: it
// binds as a method, pickles by its name, and has all its attributes.
PyObject* with_shortcut(PyObject* function, Shortcut shortcut);

}  // namespace fastsoftmax
