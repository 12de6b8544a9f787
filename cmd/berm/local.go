package main

import (
	"errors"

	"github.com/bermedge/berm/userspace/control"
)

func openLocal(string) (control.Tables, func() error, error) { return nil, nil, errors.New("pending") }

func (a *app) neither(err error) error {
	return fail(exitAbsent, "Load the kernel half (berm kernel up), start the daemon (systemctl start bermd), or name --socket or --pins.",
		"bermd is not running (nobody listens at %s), and the pinned maps cannot be opened: %w", a.settings().socket, err)
}
