//go:build !quiccc

package quiccc

import "github.com/quic-go/quic-go"

// Selectable says whether connections can have a controller of their own.
const Selectable = false

// hook counts the connection, which has Reno.
func (c *Chooser) hook(choice Choice, _ *quic.Config) {
	name, err := Controller(choice.Controller)
	c.count(Count{Controller: name, Profile: choice.Profile, Refused: err != nil})
}
