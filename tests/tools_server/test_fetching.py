"""The fetch policy: addresses, names that resolve to them, redirect chains, re-binding, size, type
and time."""

import datetime
import gzip
import socket
import ssl
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from stand_ins import StandIn, raw_peer

from tools_server.failures import ToolError
from tools_server.fetching import addresses
from tools_server.fetching.addresses import is_public, target
from tools_server.fetching.fetch import MAX_BYTES, MAX_PDF_BYTES, Fetcher

PUBLIC = '93.184.216.34'

NOT_PUBLIC = [
    '127.0.0.1', '127.255.255.254', '0.0.0.0', '0.1.2.3', '10.0.0.1', '10.255.255.255', '172.16.0.1', '172.31.255.255',
    '192.168.0.1', '192.168.255.255', '169.254.169.254', '169.254.0.1', '100.64.0.1', '100.100.100.200',
    '192.0.0.1', '192.0.2.1', '198.18.0.1', '198.51.100.1', '203.0.113.1', '224.0.0.1', '239.255.255.250',
    '240.0.0.1', '255.255.255.255', '168.63.129.16', '::', '::1', 'fe80::1', 'fe80::1%eth0', 'fc00::1', 'fd00:ec2::254',
    'ff02::1', '::ffff:127.0.0.1', '::ffff:169.254.169.254', '::ffff:10.0.0.1', '64:ff9b::7f00:1',
    '64:ff9b::a9fe:a9fe', '2002:7f00:1::', '2002:a00:1::', '2001:0:4136:e378:8000:63bf:80ff:fffe',
    '::127.0.0.1', '2001:db8::1', '192.0.0.8', '192.88.99.1', 'fec0::1', '3fff::1', '64:ff9b:1::a00:1', '100::1',
    '::ffff:0:10.0.0.1', '2002:a9fe:a9fe::', '169.254.170.2', 'not an address',
]  # fmt: skip


@pytest.mark.parametrize('address', NOT_PUBLIC)
def test_address_is_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    'address', [PUBLIC, '8.8.8.8', '2606:4700:4700::1111', '::ffff:8.8.8.8', '2002:808:808::']
)
def test_address_is_public(address):
    assert is_public(address)


@pytest.mark.parametrize(
    'url',
    [
        'http://127.0.0.1/', 'http://localhost/', 'http://LOCALHOST/', 'http://2130706433/', 'http://0x7f.1/',
        'http://0177.0.0.1/', 'http://127.1/', 'http://[::1]/', 'http://[::ffff:7f00:1]/', 'http://10.0.0.1/',
        'http://169.254.169.254/latest/meta-data/', 'http://8.8.8.8:22/', 'http://8.8.8.8:6379/',
        'http://user:secret@8.8.8.8/', 'http://8.8.8.8@127.0.0.1/', 'http://8.8.8.8\\@127.0.0.1/', 'file:///etc/passwd',
        'gopher://8.8.8.8/', 'ftp://8.8.8.8/', 'data:text/html,x', 'javascript:alert(1)', '//8.8.8.8/', 'http://', '',
        'http://8.8.8.8:99999/', 'http://[::1', 'http://8.8.8.8/\r\nHost: x', 'HTTP://127.0.0.1/',
    ],
)  # fmt: skip
def test_url_is_refused(url):
    with pytest.raises(ToolError) as error:
        Fetcher(1.0).fetch(url)
    assert error.value.kind == 'refused'


@given(st.text(max_size=60))
def test_any_text_is_a_target_or_a_failure(text):
    def resolver(host, port):
        raise OSError('no such host')

    for url in (text, 'http://' + text, 'http://8.8.8.8' + text):
        try:
            target(url, resolver=resolver)
        except ToolError as error:
            assert error.kind in ('refused', 'unavailable')


def test_one_private_address_among_public_ones_is_enough():
    with pytest.raises(ToolError) as error:
        target('http://mixed.test/', resolver=lambda host, port: [PUBLIC, '10.0.0.1'])
    assert error.value.kind == 'refused'


class Internet:
    """Names with public addresses, all of which lead to a local stand-in; counts connections."""

    def __init__(self, stand_in, names):
        self.names, self.dialled = names, []
        self._port = int(stand_in.url.rpartition(':')[2])

    def resolve(self, host, port):
        answers = self.names.get(host)
        if answers is None:
            return (
                addresses.resolve(host, port)
                if host[0].isdigit() or ':' in host or host == 'localhost'
                else []
            )
        return [answers.pop(0) if len(answers) > 1 else answers[0]]

    def dial(self, address, port, timeout_s):
        assert is_public(address), f'connected to {address}'
        self.dialled.append(address)
        return socket.create_connection(('127.0.0.1', self._port), timeout_s)

    def fetcher(self, timeout_s=2.0):
        return Fetcher(timeout_s, resolver=self.resolve, dialler=self.dial)


@pytest.fixture
def internet(stand_in):
    stand_in.answers['/page'] = lambda body: (
        200,
        b'<p>text</p>',
        {'Content-Type': 'text/html; charset=utf-8'},
    )
    return Internet(
        stand_in, {'a.test': [PUBLIC], 'b.test': ['8.8.8.8'], 'evil.test': ['192.168.1.1']}
    )


def moved(to, status=302):
    return lambda body: (status, b'', {'Location': to})


def test_pages_are_fetched_with_their_own_host_name(internet, stand_in):
    assert internet.fetcher().fetch('http://a.test/page').data == b'<p>text</p>'
    assert internet.dialled == [PUBLIC]


def test_redirects_to_public_places_are_followed(internet, stand_in):
    stand_in.answers |= {
        '/1': moved('http://b.test/2', 301),
        '/2': moved('3', 307),
        '/3': moved('//a.test/page', 308),
    }
    assert internet.fetcher().fetch('http://a.test/1').data == b'<p>text</p>'
    assert internet.dialled == [PUBLIC, '8.8.8.8', '8.8.8.8', PUBLIC]


@pytest.mark.parametrize(
    'host, name',
    [
        ('☃.net', 'xn--n3h.net'),
        ('faß.de', 'xn--fa-hia.de'),
        ('MÜNCHEN.de', 'xn--mnchen-3ya.de'),
        ('日本。jp', 'xn--wgv71a.jp'),
    ],
)
def test_names_beyond_ascii_are_looked_up_as_browsers_do(internet, host, name):
    internet.names[name] = [PUBLIC]
    assert internet.fetcher().fetch(f'http://{host}/page').data == b'<p>text</p>'


@pytest.mark.parametrize(
    'url',
    ['http://☃.net:22/', 'http://１２７.０.０.１/', 'http://127。0。0。1/', 'http://ⓛocalhost/'],
)
def test_other_signs_do_not_hide_an_address_inside(url):
    with pytest.raises(ToolError) as error:
        Fetcher(1.0).fetch(url)
    assert error.value.kind == 'refused'


@pytest.mark.parametrize(
    'place', ['http://[', 'http://a b/', 'http://[::1', 'http://a.test:x/', 'http://a%zz.test/']
)
def test_a_redirect_to_a_malformed_address_is_a_failure_with_a_kind(internet, stand_in, place):
    stand_in.answers['/odd'] = moved(place)
    with pytest.raises(ToolError) as error:
        internet.fetcher().fetch('http://a.test/odd')
    assert error.value.kind in ('refused', 'unavailable') and internet.dialled == [PUBLIC]


@pytest.mark.parametrize(
    'last',
    [
        'http://127.0.0.1/page', 'http://localhost/page', 'http://169.254.169.254/', 'http://evil.test/page',
        'http://[::1]/page', 'http://2130706433/page', '//10.0.0.1/page', 'file:///etc/passwd', 'ftp://b.test/',
        'http://b.test:22/', 'http://u:p@b.test/', 'http://[::ffff:169.254.169.254]/',
    ],
)  # fmt: skip
@pytest.mark.parametrize('hops', [1, 3])
def test_chains_that_end_inside_are_refused_before_connecting(internet, stand_in, last, hops):
    for hop in range(hops):
        stand_in.answers[f'/{hop}'] = moved(f'http://b.test/{hop + 1}' if hop + 1 < hops else last)
    with pytest.raises(ToolError) as error:
        internet.fetcher().fetch('http://a.test/0')
    assert error.value.kind == 'refused' and len(internet.dialled) == hops


def test_endless_redirects_end(internet, stand_in):
    stand_in.answers['/loop'] = moved('/loop')
    with pytest.raises(ToolError) as error:
        internet.fetcher().fetch('http://a.test/loop')
    assert error.value.kind == 'refused' and len(internet.dialled) == 6


def test_name_that_changes_its_address_gains_nothing(internet, stand_in):
    """Re-binding: public when checked, private when asked again.

    It is asked once, and then refused.
    """
    internet.names['rebind.test'] = [PUBLIC, '127.0.0.1']
    stand_in.answers['/again'] = moved('http://rebind.test/page')
    assert internet.fetcher().fetch('http://rebind.test/page').data == b'<p>text</p>'
    with pytest.raises(ToolError) as error:
        internet.fetcher().fetch('http://rebind.test/again')
    assert error.value.kind == 'refused' and internet.dialled == [PUBLIC]


@pytest.mark.parametrize(
    'kind', ['application/msword', 'application/octet-stream', 'image/png', '', 'video/mp4']
)
def test_other_types_are_refused(internet, stand_in, kind):
    stand_in.answers['/odd'] = lambda body: (200, b'x', {'Content-Type': kind})
    with pytest.raises(ToolError) as error:
        internet.fetcher().fetch('http://a.test/odd')
    assert error.value.kind == 'refused'


def test_size_is_capped_also_when_compressed(internet, stand_in):
    html = {'Content-Type': 'text/html'}
    stand_in.answers |= {
        '/large': lambda body: (200, b'x' * (MAX_BYTES + 1), html),
        '/large.pdf': lambda body: (
            200,
            b'x' * (MAX_PDF_BYTES + 1),
            {'Content-Type': 'application/pdf'},
        ),
        '/bomb': lambda body: (
            200,
            gzip.compress(b'x' * 3 * MAX_BYTES),
            html | {'Content-Encoding': 'gzip'},
        ),
    }
    for path in ('/large', '/large.pdf', '/bomb'):
        with pytest.raises(ToolError) as error:
            internet.fetcher(timeout_s=30).fetch('http://a.test' + path)
        assert error.value.kind == 'unavailable' and 'bytes' in error.value.message


@pytest.mark.parametrize('where', ['headers', 'body'])
def test_a_peer_that_drips_does_not_hold_the_caller(where):
    start = b'HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n'
    head = start if where == 'headers' else start + b'Content-Length: 100000\r\n\r\n'

    def drip(connection):
        connection.sendall(head)
        for _ in range(90):
            connection.sendall(b'X-Y: z\r\n' if where == 'headers' else b'x')
            time.sleep(0.05)

    with raw_peer(drip) as url:
        began = time.monotonic()
        with pytest.raises(ToolError) as error:
            Fetcher(0.4, allow_private=True).fetch(url)
        assert error.value.kind == 'timeout' and time.monotonic() - began < 2


def test_stand_in_of_the_internet_refuses_private_addresses():
    """The tests above rest on it."""
    service = StandIn()
    with pytest.raises(AssertionError, match='connected to'):
        Internet(service, {}).dial('127.0.0.1', 80, 1)
    service.close()


@pytest.fixture(scope='module')
def certificate(tmp_path_factory):
    """A self-signed certificate of a.test, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, 'a.test')])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName('a.test')]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp('tls') / 'a.test.pem'
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(secret + made.public_bytes(pem))
    return path


@pytest.mark.parametrize('trusted, host', [(True, 'a.test'), (False, 'a.test'), (True, 'b.test')])
def test_certificates_are_those_of_the_name_though_the_address_is_fixed(
    stand_in, certificate, monkeypatch, trusted, host
):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    stand_in.use_tls(context)
    stand_in.answers['/page'] = lambda body: (200, b'secret', {'Content-Type': 'text/html'})
    if trusted:
        monkeypatch.setenv('SSL_CERT_FILE', str(certificate))
    fetcher = Internet(stand_in, {'a.test': [PUBLIC], 'b.test': [PUBLIC]}).fetcher()
    if trusted and host == 'a.test':
        assert fetcher.fetch(f'https://{host}/page').data == b'secret'
        return
    with pytest.raises(ToolError) as error:
        fetcher.fetch(f'https://{host}/page')
    assert error.value.kind == 'unavailable'
