package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// issue makes an authority, a certificate of the gateway and one of a client: NAME.crt and NAME.key in a directory, for
// ca, gateway and client.
func issue(dir, suffix string) error {
	authority := template(1)
	authority.IsCA, authority.BasicConstraintsValid = true, true
	authority.KeyUsage = x509.KeyUsageCertSign
	key, err := write(dir, "ca", authority, authority, nil)
	if err != nil {
		return err
	}
	gateway := template(2)
	gateway.DNSNames = []string{suffix, "*." + suffix}
	gateway.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	gateway.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	if _, err := write(dir, "gateway", gateway, authority, key); err != nil {
		return err
	}
	client := template(3)
	client.DNSNames = []string{"client." + suffix}
	client.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	_, err = write(dir, "client", client, authority, key)
	return err
}

func template(serial int64) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(serial),
		Subject:      pkix.Name{CommonName: "dialback.test"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
}

// write signs with the key it makes, if it is given none.
func write(dir, name string, certificate, issuer *x509.Certificate, signer *ecdsa.PrivateKey) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if signer == nil {
		signer = key
	}
	signed, err := x509.CreateCertificate(rand.Reader, certificate, issuer, &key.PublicKey, signer)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	file := func(suffix, kind string, bytes []byte) error {
		text := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: bytes})
		return os.WriteFile(filepath.Join(dir, name+suffix), text, 0o600)
	}
	if err := file(".crt", "CERTIFICATE", signed); err != nil {
		return nil, err
	}
	return key, file(".key", "PRIVATE KEY", private)
}
