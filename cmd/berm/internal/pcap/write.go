// Package pcap writes packets in the pcapng format (draft-ietf-opsawg-pcapng), with why they had
// their fate as a comment, and without what tells of a person unless that is asked for.
package pcap

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"
)

// Blocks and options of pcapng.
const (
	blockSection   = 0x0A0D0D0A
	blockInterface = 1
	blockStats     = 5
	blockPacket    = 6

	byteOrderMagic = 0x1A2B3C4D
	linkEthernet   = 1

	optEnd        = 0
	optComment    = 1
	optAppl       = 4 // of a section
	optName       = 2 // of an interface
	optResolution = 9
	optReceived   = 4 // of statistics
	optDropped    = 5
)

// Writer writes a capture of one interface.
type Writer struct{ w io.Writer }

// NewWriter begins a capture.
func NewWriter(w io.Writer, program, iface string, snap int) (*Writer, error) {
	section := binary.LittleEndian.AppendUint32(nil, byteOrderMagic)
	section = append(section, 1, 0, 0, 0)                                   // version 1.0
	section = binary.LittleEndian.AppendUint64(section, 0xFFFFFFFFFFFFFFFF) // of unknown length
	section = option(section, optAppl, []byte(program))

	about := []byte{linkEthernet, 0, 0, 0}
	about = binary.LittleEndian.AppendUint32(about, uint32(snap))
	about = option(option(about, optName, []byte(iface)), optResolution, []byte{9}) // nanoseconds
	pw := &Writer{w}
	if err := pw.block(blockSection, end(section)); err != nil {
		return nil, err
	}
	return pw, pw.block(blockInterface, end(about))
}

// Packet writes a packet, of which frame may be the beginning.
func (w *Writer) Packet(at time.Time, frame []byte, length int, comment string) error {
	b := binary.LittleEndian.AppendUint32(nil, 0) // the interface
	b = stamp(b, at)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(frame)))
	b = binary.LittleEndian.AppendUint32(b, uint32(max(length, len(frame))))
	b = pad(append(b, frame...))
	return w.block(blockPacket, end(option(b, optComment, []byte(comment))))
}

// Stats says how many packets fitted, and how many of them are missing.
func (w *Writer) Stats(at time.Time, seen, lost uint64) error {
	b := stamp(binary.LittleEndian.AppendUint32(nil, 0), at)
	b = option(b, optReceived, binary.LittleEndian.AppendUint64(nil, seen))
	b = option(b, optDropped, binary.LittleEndian.AppendUint64(nil, lost))
	return w.block(blockStats, end(b))
}

func (w *Writer) block(kind uint32, body []byte) error {
	length := uint32(len(body) + 12)
	b := binary.LittleEndian.AppendUint32(nil, kind)
	b = binary.LittleEndian.AppendUint32(b, length)
	b = binary.LittleEndian.AppendUint32(append(b, body...), length)
	if _, err := w.w.Write(b); err != nil {
		return fmt.Errorf("write the capture: %w", err)
	}
	return nil
}

func stamp(b []byte, at time.Time) []byte {
	ns := uint64(at.UnixNano())
	b = binary.LittleEndian.AppendUint32(b, uint32(ns>>32))
	return binary.LittleEndian.AppendUint32(b, uint32(ns))
}

func option(b []byte, code uint16, value []byte) []byte {
	b = binary.LittleEndian.AppendUint16(b, code)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
	return pad(append(b, value...))
}

func end(b []byte) []byte { return option(b, optEnd, nil) }

func pad(b []byte) []byte {
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}
