package trust

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"testing"

	"github.com/skein-fleet/skein/proto/wire"
	"github.com/veraison/go-cose"
)

func edKey(seed byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
}

func ecKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func signer(t testing.TB, k crypto.Signer) *Signer {
	t.Helper()
	s, err := NewSigner(k)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSignVerify(t *testing.T) {
	ec := ecKey(t)
	all := []crypto.PublicKey{edKey(1).Public(), ec.Public(), edKey(2).Public()}
	for name, key := range map[string]crypto.Signer{"Ed25519": edKey(2), "P-256": ec} {
		for _, payload := range [][]byte{{}, []byte("desired"), bytes.Repeat([]byte{1}, 100_000)} {
			msg, err := Sign(signer(t, key), wire.AADDesired, payload)
			if err != nil {
				t.Fatal(err)
			}
			got, err := Verify(all, wire.AADDesired, msg)
			if err != nil || !bytes.Equal(got, payload) {
				t.Errorf("%s, %d bytes: %v", name, len(payload), err)
			}
			for what, c := range map[string]struct {
				keys []crypto.PublicKey
				aad  string
				msg  []byte
				want error
			}{
				"another use":  {all, wire.AADCmd, msg, ErrSignature},
				"no keys":      {nil, wire.AADDesired, msg, ErrSignature},
				"another key":  {all[:1], wire.AADDesired, msg, ErrSignature},
				"trailing":     {all, wire.AADDesired, append(bytes.Clone(msg), 0), ErrUnsigned},
				"truncated":    {all, wire.AADDesired, msg[:len(msg)-1], ErrUnsigned},
				"empty":        {all, wire.AADDesired, nil, ErrUnsigned},
				"bare payload": {all, wire.AADDesired, payload, ErrUnsigned},
				"too long":     {all, wire.AADDesired, make([]byte, wire.MaxMessage+1), ErrUnsigned},
			} {
				if _, err := Verify(c.keys, c.aad, c.msg); !errors.Is(err, c.want) {
					t.Errorf("%s, %s: got %v, want %v", name, what, err, c.want)
				}
			}
		}
	}
}

// TestEveryBitCounts: no changed bit of a message passes.
func TestEveryBitCounts(t *testing.T) {
	keys := []crypto.PublicKey{edKey(1).Public()}
	msg, err := Sign(signer(t, edKey(1)), wire.AADDesired, []byte("payload"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range len(msg) * 8 {
		bad := bytes.Clone(msg)
		bad[i/8] ^= 1 << (i % 8)
		if _, err := Verify(keys, wire.AADDesired, bad); err == nil {
			t.Errorf("bit %d changed, yet accepted", i)
		}
	}
}

// TestVerifyIsStrict: one signed message has one form.
func TestVerifyIsStrict(t *testing.T) {
	key := edKey(1)
	kid, err := KeyID(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	cs, err := cose.NewSigner(cose.AlgorithmEdDSA, key)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(m *cose.Sign1Message){
		"unprotected header": func(m *cose.Sign1Message) { m.Headers.Unprotected[int64(99)] = "x" },
		"key id unprotected": func(m *cose.Sign1Message) {
			delete(m.Headers.Protected, cose.HeaderLabelKeyID)
			m.Headers.Unprotected[cose.HeaderLabelKeyID] = kid
		},
		"critical header": func(m *cose.Sign1Message) {
			m.Headers.Protected[int64(2)] = []any{int64(99)}
			m.Headers.Protected[int64(99)] = int64(1)
		},
		"no key id": func(m *cose.Sign1Message) { delete(m.Headers.Protected, cose.HeaderLabelKeyID) },
	} {
		m := cose.NewSign1Message()
		m.Headers.Protected.SetAlgorithm(cose.AlgorithmEdDSA)
		m.Headers.Protected[cose.HeaderLabelKeyID] = kid
		m.Payload = []byte("p")
		change(m)
		if err := m.Sign(rand.Reader, []byte(wire.AADCmd), cs); err != nil {
			t.Fatal(err)
		}
		b, err := m.MarshalCBOR()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Verify([]crypto.PublicKey{key.Public()}, wire.AADCmd, b); !errors.Is(err, ErrUnsigned) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestGoldenSignature pins the form: other implementations can check it.
func TestGoldenSignature(t *testing.T) {
	const want = "d2844da201270448fd110d301d2f077da045636f6465315840"
	msg, err := Sign(signer(t, edKey(1)), wire.AADDesired, []byte("code1"))
	if err != nil {
		t.Fatal(err)
	}
	again, err := Sign(signer(t, edKey(1)), wire.AADDesired, []byte("code1"))
	if err != nil || !bytes.Equal(msg, again) {
		t.Error("two signatures differ")
	}
	if got := hex.EncodeToString(msg[:len(msg)-ed25519.SignatureSize]); got != want {
		t.Errorf("form changed:\n got %s\nwant %s", got, want)
	}
}

func TestNewSignerRefuses(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewSigner(p384); !errors.Is(err, ErrKey) {
		t.Error(err)
	}
	if _, err := Verify([]crypto.PublicKey{p384.Public()}, "", mustSign(t)); !errors.Is(err, ErrKey) {
		t.Error(err)
	}
}

func mustSign(t testing.TB) []byte {
	t.Helper()
	b, err := Sign(signer(t, edKey(1)), "", []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func FuzzVerify(f *testing.F) {
	f.Add(mustSign(f))
	f.Add([]byte{0xd2, 0x84})
	keys := []crypto.PublicKey{edKey(1).Public()}
	honest := mustSign(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := Verify(keys, "", b); err == nil && !bytes.Equal(b, honest) {
			t.Fatalf("accepted %x", b)
		}
	})
}

func TestSeal(t *testing.T) {
	priv, pub, err := NewSealKey()
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := NewSealKey()
	if err != nil {
		t.Fatal(err)
	}
	aad := SealAAD("device", "camera")
	for _, plain := range [][]byte{{}, []byte("rtsp://user:secret@camera")} {
		a, err := Seal(pub, aad, plain)
		if err != nil {
			t.Fatal(err)
		}
		b, err := Seal(pub, aad, plain)
		if err != nil || bytes.Equal(a, b) {
			t.Error("sealing twice gives the same bytes")
		}
		if len(plain) > 0 && bytes.Contains(a, plain) {
			t.Error("sealed bytes hold the secret")
		}
		got, err := Open(priv, aad, a)
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("open: %q, %v", got, err)
		}
		for name, try := range map[string]func() ([]byte, error){
			"another device": func() ([]byte, error) { return Open(other, aad, a) },
			"another use":    func() ([]byte, error) { return Open(priv, SealAAD("device", "microphone"), a) },
			"short":          func() ([]byte, error) { return Open(priv, aad, a[:10]) },
			"empty":          func() ([]byte, error) { return Open(priv, aad, nil) },
		} {
			if got, err := try(); !errors.Is(err, ErrSealed) || got != nil {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}
		for i := range a {
			bad := bytes.Clone(a)
			bad[i] ^= 0x40
			if _, err := Open(priv, aad, bad); err == nil {
				t.Errorf("byte %d changed, yet opened", i)
			}
		}
	}
	if _, err := Seal([]byte("short"), aad, nil); err == nil {
		t.Error("sealed to no key")
	}
	if _, err := Seal(make([]byte, 32), aad, nil); err == nil {
		t.Error("sealed to a key of low order")
	}
}
