package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"

	"github.com/alecthomas/kong"

	"github.com/bermedge/berm/userspace/control"
)

// Exit codes, as --help and berm(1) tell them.
const (
	exitOK         = 0
	exitFailed     = 1
	exitUsage      = 2
	exitAbsent     = 3 // not running, not loaded, not found
	exitPermission = 4
)

// fault is an error for the operator: what and where, what to do, and the exit code.
type fault struct {
	Error string `json:"error"`
	Hint  string `json:"hint,omitempty"`
	Code  int    `json:"code"`
}

// failure carries a fault through functions that return errors.
type failure struct {
	fault
	cause error
}

func (f *failure) Error() string { return f.fault.Error }
func (f *failure) Unwrap() error { return f.cause }

// fail makes an error with an exit code and a hint.
func fail(code int, hint, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return &failure{fault{err.Error(), hint, code}, err}
}

// usage turns what the parser found into an error that names the help to read.
func usage(err error) error {
	hint := "Try: berm --help"
	if p, ok := errors.AsType[*kong.ParseError](err); ok && p.Context != nil && p.Context.Selected() != nil {
		hint = "Try: " + p.Context.Selected().FullPath() + " --help"
	}
	return fail(exitUsage, hint, "%w", err)
}

// badInput is an argument that no retry will make right.
func badInput(format string, args ...any) error { return fail(exitUsage, "", format, args...) }

// explain finds the exit code and the hint of any error that reaches the end.
func explain(err error) fault {
	if f, ok := errors.AsType[*failure](err); ok {
		return f.fault
	}
	f := fault{Error: err.Error(), Code: exitFailed}
	if e, ok := errors.AsType[*control.Error](err); ok {
		f.Error, f.Hint = e.Message, e.Hint
		switch e.Status {
		case http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusConflict:
			f.Code = exitUsage
		case http.StatusNotFound, http.StatusServiceUnavailable:
			f.Code = exitAbsent
		case http.StatusForbidden:
			f.Code = exitPermission
		}
		return f
	}
	switch {
	case errors.Is(err, control.ErrDown):
		f.Code = exitAbsent
	case errors.Is(err, fs.ErrPermission):
		f.Code = exitPermission
	}
	return f
}

// same gives errors of the direct way to the maps the form that the daemon's have.
func (a *app) same(err error) error {
	if _, own := errors.AsType[*failure](err); err == nil || own || a.by != byMaps {
		return err
	}
	return control.AsError(err)
}
