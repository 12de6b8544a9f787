package edge

import (
	"errors"
	"fmt"

	"github.com/quic-go/quic-go"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/config"
	"github.com/bermedge/berm/userspace/quiclb"
	"github.com/bermedge/berm/userspace/transport"
)

// cids makes QUIC connection IDs that name this edge, if the file wants such.
type cids struct {
	made *quiclb.Generator // nil: the file wanted none when the listeners were opened
}

// newCIDs makes IDs of the length that the file's first format has.
func newCIDs(cfg *config.Config) (*cids, error) {
	formats, err := cfg.QUIC.Formats()
	if err != nil || len(formats) == 0 {
		return &cids{}, err
	}
	c := &cids{made: quiclb.NewGenerator(formats[0].Len())}
	return c, c.made.Use(formats, cfg.ServerID())
}

// generator is nil, and not an interface of nil, where the file wants no such IDs.
func (c *cids) generator() quic.ConnectionIDGenerator {
	if c.made == nil {
		return nil
	}
	return c.made
}

// apply makes new IDs as cfg says. The error is transport.ErrRestart where only listeners opened anew
// can do so; IDs given meanwhile name this edge in another format of the file, or nobody.
func (c *cids) apply(cfg *config.Config) error {
	formats, err := cfg.QUIC.Formats()
	if err != nil {
		return err
	}
	restart := fmt.Errorf("quic.cid: the first format %w, since its connection IDs have another length", transport.ErrRestart)
	if c.made == nil {
		if len(formats) == 0 {
			return nil
		}
		return restart
	}
	switch err := c.made.Use(formats, cfg.ServerID()); {
	case errors.Is(err, quiclb.ErrLength):
		return restart
	default:
		return err
	}
}

// readCID reads connection IDs for explaining them.
func readCID(f maps.CIDFormat, cid []byte) (uint64, error) {
	return quiclb.Number(quiclb.Format(f), cid)
}
