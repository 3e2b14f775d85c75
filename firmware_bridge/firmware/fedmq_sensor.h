/* fedmq_sensor: frames of the native stream, for the firmware of a sensor.
 *
 * Copy fedmq_sensor.h and fedmq_sensor.c into your project. C99; no allocation, no library, no variables of its own.
 * Under 1 KB of code on a Cortex-M3 (-Os). Both files also compile as C++.
 *
 *     static uint8_t buffer[FEDMQ_SAMPLES_ENCODED(3, 64)];         3 channels, 64 samples each
 *
 *     fedmq_encoder e;
 *     fedmq_begin_samples(&e, buffer, sizeof buffer, &head, &block);
 *     for each sample: fedmq_put_i16(&e, x); fedmq_put_i16(&e, y); fedmq_put_i16(&e, z);
 *     size_t length = fedmq_end(&e);
 *     head.sequence++;
 *     send buffer[0] to buffer[length - 1] over the UART, by DMA if you have it
 *
 * The frame grows in your buffer while you sample: there is no second copy of the samples.
 *
 * What a frame holds is in docs/frames.md. Numbers go out little-endian on every machine. Send one 0x00 when you start:
 * it ends whatever the line had picked up before.
 */
#ifndef FEDMQ_SENSOR_H
#define FEDMQ_SENSOR_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    FEDMQ_VERSION = 1,

    /* Bytes around a payload: header 10, CRC-32 4, CRC-16 2. */
    FEDMQ_OVERHEAD = 16,

    /* Most bytes of a payload, and of a frame before COBS. What is longer, a gateway throws away. */
    FEDMQ_PAYLOAD_MAX = 1008,
    FEDMQ_FRAME_MAX = FEDMQ_PAYLOAD_MAX + FEDMQ_OVERHEAD,

    /* Bytes of a payload of samples before the samples, of a hello before its channels, and of each channel. */
    FEDMQ_SAMPLES_HEAD = 20,
    FEDMQ_HELLO_HEAD = 66,
    FEDMQ_HELLO_CHANNEL = 24,

    FEDMQ_CHANNELS_MAX = 16
};

/* What a payload is. From 0x80 on: towards the sensor. Those of models are in fedmq_slots.h; the others up to 0x0F and
   0x8F are reserved. */
enum {
    FEDMQ_HELLO = 0x01,
    FEDMQ_SAMPLES = 0x02,
    FEDMQ_ASK_HELLO = 0x81,

    /* In a question: every sensor on the line. */
    FEDMQ_EVERYONE = 0xFFFF
};

/* Bytes that a frame takes on the line at most, with its delimiter. Constants: use them to size buffers. */
#define FEDMQ_ENCODED(payload) (((payload) + FEDMQ_OVERHEAD) + ((payload) + FEDMQ_OVERHEAD + 253) / 254 + 1)
#define FEDMQ_SAMPLES_ENCODED(channels, count) FEDMQ_ENCODED(FEDMQ_SAMPLES_HEAD + 2 * (channels) * (count))
#define FEDMQ_HELLO_ENCODED(channels) FEDMQ_ENCODED(FEDMQ_HELLO_HEAD + FEDMQ_HELLO_CHANNEL * (channels))

/* What every frame begins with. */
typedef struct {
    uint16_t sensor;   /* which sensor on this line; not FEDMQ_EVERYONE */
    uint16_t boot;     /* another number at every start: a counter in flash, a random number; 0 if you have neither */
    uint32_t sequence; /* this sensor's frames of this kind since its start: 0, 1, 2, ... Losses are counted by it */
} fedmq_head;

/* --- out ---------------------------------------------------------------------------------------------------------- */

/* The library's own. */
typedef struct {
    uint32_t crc32;
    uint16_t crc16;
} fedmq_checks;

/* A frame that is being made. Fields are the library's own. */
typedef struct {
    uint8_t *out;
    size_t room;
    size_t used;
    size_t code_at; /* where the length of the COBS block at hand will stand */
    fedmq_checks checks;
} fedmq_encoder;

/* fedmq_begin
 *
 * Begins a frame of |kind| in |out|, which has |room| bytes, at best FEDMQ_ENCODED(bytes of payload).
 * Cannot fail: a buffer that is too small is what fedmq_end tells. Nothing is ever written beyond |room|.
 */
void fedmq_begin(fedmq_encoder *e, void *out, size_t room, uint8_t kind, const fedmq_head *head);

/* fedmq_put, fedmq_put_i16, fedmq_put_u32
 *
 * Append to the payload: |length| bytes as they are, or one number.
 */
void fedmq_put(fedmq_encoder *e, const void *bytes, size_t length);
void fedmq_put_i16(fedmq_encoder *e, int16_t number);
void fedmq_put_u32(fedmq_encoder *e, uint32_t number);

/* fedmq_end
 *
 * Appends both checksums and the delimiter. Returns the number of bytes to send, or 0 if they did not fit: then what
 * the buffer holds is of no use, and nothing of it must be sent. The encoder has to begin anew either way.
 */
size_t fedmq_end(fedmq_encoder *e);

/* Samples of all channels: first of all of them the first one, then of all of them the second one, ... */
typedef struct {
    uint64_t taken_us; /* your clock at the first sample, in microseconds since the start. Must not wrap: see docs */
    uint32_t rate_mhz; /* samples per second of one channel, times 1000 */
    float scale;       /* units of one step: a constant, so that no float arithmetic is linked */
    uint8_t channels;  /* 1 to FEDMQ_CHANNELS_MAX */
    uint8_t overrun;   /* 1 if samples were lost on the sensor just before these, else 0 */
    uint16_t count;    /* samples of each channel */
} fedmq_samples;

/* fedmq_begin_samples
 *
 * fedmq_begin for samples. Put exactly channels * count numbers by fedmq_put_i16 behind it: a gateway refuses a frame
 * with more or fewer.
 */
void fedmq_begin_samples(fedmq_encoder *e, void *out, size_t room, const fedmq_head *head, const fedmq_samples *block);

/* One channel: value = (step * scale - offset) * gain, in the unit. */
typedef struct {
    char name[8]; /* printable ASCII with zeros behind it; 8 characters need no zero. "x" */
    char unit[8]; /* "m/s2" */
    float offset; /* in the unit: what the channel reads where there is nothing to read. 0 if you do not know */
    float gain;   /* what is left to multiply by after that. 1 if you do not know */
} fedmq_channel;

/* Who this sensor is. */
typedef struct {
    uint8_t uid[16];   /* the chip's serial number with zeros behind it */
    char name[16];     /* what people call it; ASCII as above */
    char firmware[16]; /* the version of your firmware */
    uint32_t rate_mhz; /* as in the samples to come */
    float scale;
    uint8_t channels;
    const fedmq_channel *channel; /* as many as |channels| */
} fedmq_identity;

/* fedmq_encode_hello
 *
 * A whole hello into |out|, at best FEDMQ_HELLO_ENCODED(channels) bytes. |now_us| is your clock now. Returns the number
 * of bytes to send, or 0 if they did not fit. Send one when you start, every ten seconds, and when asked.
 */
size_t fedmq_encode_hello(void *out, size_t room, const fedmq_head *head, const fedmq_identity *who, uint64_t now_us);

/* --- in ----------------------------------------------------------------------------------------------------------- */

/* What a byte led to. */
typedef enum {
    FEDMQ_MORE,    /* nothing yet */
    FEDMQ_FRAME,   /* a frame is complete, and its checks hold */
    FEDMQ_DAMAGED, /* a frame ended that must not be used: noise, or too long for the buffer */
} fedmq_outcome;

/* A stream that is being read, and the frame that came last. */
typedef struct {
    /* Yours to read after FEDMQ_FRAME, until the next byte goes in. */
    uint8_t kind;
    fedmq_head head;
    const uint8_t *payload;
    size_t length;

    /* The library's own. */
    uint8_t *buffer;
    size_t room;
    size_t used;
    uint8_t code;
    uint8_t left;
    uint8_t bad;
} fedmq_decoder;

/* fedmq_decoder_start
 *
 * Reads into |buffer|, which must stay valid. |room|: the longest payload that you want to receive plus FEDMQ_OVERHEAD;
 * for questions alone FEDMQ_OVERHEAD is enough. Longer frames count as damaged, and the stream goes on behind them.
 */
void fedmq_decoder_start(fedmq_decoder *d, void *buffer, size_t room);

/* fedmq_decode
 *
 * Takes one byte, in a time that does not depend on what came before, except that the last byte of a frame checks it
 * all. After FEDMQ_FRAME kind, head, payload and length hold the frame. After FEDMQ_DAMAGED or FEDMQ_MORE they hold
 * nothing.
 */
fedmq_outcome fedmq_decode(fedmq_decoder *d, uint8_t byte);

/* fedmq_asked
 *
 * After FEDMQ_FRAME: 1 if the frame asks this sensor for a hello, else 0.
 */
int fedmq_asked(const fedmq_decoder *d, uint16_t sensor);

#ifdef __cplusplus
}
#endif
#endif
