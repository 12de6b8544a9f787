package edge

import (
	"errors"
	"fmt"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/config"
	"github.com/bermedge/berm/userspace/quiclb"
	"github.com/bermedge/berm/userspace/transport"
)

// cids makes QUIC connection IDs that name this edge, if the file wants such.
type cids struct {
	made *quiclb.Generator
}

// plainCID is the length of IDs where the file wants none that name an edge, in bytes.
const plainCID = 8

// newCIDs makes IDs of the length that the file's first format has.
func newCIDs(cfg *config.Config) (*cids, error) {
	formats, err := cfg.QUIC.Formats()
	if err != nil {
		return nil, err
	}
	length := plainCID
	if len(formats) > 0 {
		length = formats[0].Len()
	}
	c := &cids{made: quiclb.NewGenerator(length)}
	return c, c.made.Use(formats, cfg.ServerID())
}

// apply makes new IDs as cfg says. The error is transport.ErrRestart where only listeners opened anew
// can do so; IDs given meanwhile name this edge in another format of the file, or nobody.
func (c *cids) apply(cfg *config.Config) error {
	formats, err := cfg.QUIC.Formats()
	if err != nil {
		return err
	}
	err = c.made.Use(formats, cfg.ServerID())
	if errors.Is(err, quiclb.ErrLength) {
		return fmt.Errorf("quic.cid: the first format %w, since its connection IDs have another length", transport.ErrRestart)
	}
	return err
}

// readCID reads connection IDs for explaining them.
func readCID(f maps.CIDFormat, cid []byte) (uint64, error) {
	return quiclb.Number(quiclb.Format(f), cid)
}
