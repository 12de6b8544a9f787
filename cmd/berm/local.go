package main

import (
	"errors"
	"io/fs"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/control"
	"github.com/bermedge/berm/userspace/quiclb"
)

// openLocal opens the pinned maps, the way that is left while the daemon is down.
func (a *app) openLocal(pins string) (control.Tables, func() error, error) {
	set, err := maps.Open(maps.PinDir(pins))
	if err != nil {
		return nil, nil, err
	}
	return control.NewLocal(set, a.compiler(set)).WithCIDs(readCID), set.Close, nil
}

// readCID reads connection IDs for explaining them.
func readCID(f maps.CIDFormat, cid []byte) (uint64, error) {
	return quiclb.Number(quiclb.Format(f), cid)
}

// neither explains why nothing could be reached, and what to do about it.
func (a *app) neither(err error) error {
	what := "bermd is not running (nobody listens at %s), and without it the pinned maps are needed: %w"
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fail(exitPermission, "", what, a.settings().socket, err)
	case errors.Is(err, maps.ErrNotUp), errors.Is(err, maps.ErrContract):
		return fail(exitAbsent, "Load the kernel half (berm kernel up), start the daemon (systemctl start bermd), or name --socket or --pins.",
			what, a.settings().socket, err)
	}
	return fail(exitFailed, "", what, a.settings().socket, err)
}
