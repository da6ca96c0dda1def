#include "shortcut.hpp"

#include <structmember.h>

#include <cstddef>

namespace fastsoftmax {
namespace {

struct Function {
    PyObject head;
    vectorcallfunc vectorcall;
    Shortcut shortcut;
    PyObject* python;      // the function that it stands for
    PyObject* attributes;  // its own, as functools.update_wrapper sets them, __wrapped__ among them
    PyObject* weak_references;
};

PyObject* python_function(PyObject* self) { return reinterpret_cast<Function*>(self)->python; }

PyObject* call(PyObject* self, PyObject* const* given, std::size_t count, PyObject* names) {
    PyObject* result = reinterpret_cast<Function*>(self)->shortcut(given, PyVectorcall_NARGS(count), names);
    if (result || PyErr_Occurred()) return result;
    return PyObject_Vectorcall(python_function(self), given, count, names);
}

// Attributes that the object lacks (__code__, __defaults__, ...) are those of the Python function, or its
// AttributeError.
PyObject* attribute(PyObject* self, PyObject* name) {
    PyObject* found = PyObject_GenericGetAttr(self, name);
    if (found || !PyErr_ExceptionMatches(PyExc_AttributeError)) return found;
    PyErr_Clear();
    return PyObject_GetAttr(python_function(self), name);
}

PyObject* bound(PyObject* self, PyObject* instance, PyObject*) {
    if (!instance || instance == Py_None) return Py_NewRef(self);
    return PyMethod_New(self, instance);
}

PyObject* shown(PyObject* self) { return PyObject_Repr(python_function(self)); }

PyObject* reduced(PyObject* self, PyObject*) { return PyObject_GetAttrString(self, "__qualname__"); }

// There is no tp_clear: each cycle also contains a dict or the Python function, which the collector clears.
int traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(python_function(self));
    Py_VISIT(reinterpret_cast<Function*>(self)->attributes);
    return 0;
}

void deallocate(PyObject* self) {
    PyTypeObject* const type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    PyObject_ClearWeakRefs(self);
    Py_DECREF(python_function(self));
    Py_XDECREF(reinterpret_cast<Function*>(self)->attributes);
    type->tp_free(self);
    Py_DECREF(type);
}

PyMemberDef members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Function, vectorcall), READONLY, nullptr},
    {"__dictoffset__", T_PYSSIZET, offsetof(Function, attributes), READONLY, nullptr},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Function, weak_references), READONLY, nullptr},
    {},
};

// Makes isinstance, and with it help() and inspect, take the object for a Python function.
PyObject* shown_type(PyObject*, void*) { return Py_NewRef(reinterpret_cast<PyObject*>(&PyFunction_Type)); }

PyGetSetDef computed[] = {{"__class__", shown_type, nullptr, nullptr, nullptr},
                          {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, nullptr, nullptr},
                          {}};

PyMethodDef methods[] = {{"__reduce__", reduced, METH_NOARGS, nullptr}, {}};

template <class F>
void* slot(F* function) {
    return reinterpret_cast<void*>(function);
}

PyType_Slot slots[] = {
    {Py_tp_call, slot(PyVectorcall_Call)},
    {Py_tp_getattro, slot(attribute)},
    {Py_tp_descr_get, slot(bound)},
    {Py_tp_repr, slot(shown)},
    {Py_tp_traverse, slot(traverse)},
    {Py_tp_dealloc, slot(deallocate)},
    {Py_tp_members, members},
    {Py_tp_getset, computed},
    {Py_tp_methods, methods},
    {},
};

PyType_Spec spec = {"fastsoftmax._core.function", sizeof(Function), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL |
                        Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
                    slots};

}  // namespace

PyObject* with_shortcut(PyObject* function, Shortcut shortcut) {
    // Made once: a second import of the core gets functions of the same type.
    static PyObject* const type = PyType_FromSpec(&spec);
    if (!type) return nullptr;
    auto* made = PyObject_GC_New(Function, reinterpret_cast<PyTypeObject*>(type));
    if (!made) return nullptr;
    made->vectorcall = call;
    made->shortcut = shortcut;
    made->python = Py_NewRef(function);
    made->attributes = made->weak_references = nullptr;
    PyObject_GC_Track(made);
    PyObject* const functools = PyImport_ImportModule("functools");
    PyObject* const dressed =
        functools ? PyObject_CallMethod(functools, "update_wrapper", "OO", made, function) : nullptr;
    Py_XDECREF(functools);
    Py_DECREF(made);
    return dressed;
}

}  // namespace fastsoftmax
