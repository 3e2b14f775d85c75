/* A vibration sensor: ADXL345 on SPI, three axes at 3,200 samples a second, over USB or UART to a gateway.
 *
 * For any Arduino with SPI and 1 KB of RAM to spare; an Uno will do. Copy fedmq_sensor.h and fedmq_sensor.c into this
 * folder first.
 *
 *     ADXL345   VCC   GND   CS          SDO    SDA    SCL
 *     Uno       3V3   GND   10 (ADXL)   12     11     13      5 V boards: level shifters on CS, SDA and SCL
 *
 * Rate of the line: 1,000,000 baud, which a 16 MHz AVR makes exactly. The stream takes 210,000 bits a second of it.
 */
#include <SPI.h>

#include "fedmq_sensor.h"

/* --- yours to change ---------------------------------------------------------------------------------------------- */

static const uint32_t BAUD = 1000000;
static const uint8_t ADXL = 10;     /* chip select */
static const uint16_t SENSOR = 1;   /* its number on this line */

#define CHANNELS 3
#define BLOCK 64                    /* samples of each axis in a frame: 20 ms, 423 bytes. Fewer on a noisy line */
#define RATE_HZ 3200u
#define STEP (0.0039f * 9.80665f)   /* m/s2: full resolution, 3.9 mg */

/* Turn each axis up and down: offset is half the sum of both readings, gain is 19.6133 by their difference. */
static const fedmq_channel channels[CHANNELS] = {
    {"x", "m/s2", 0.0f, 1.0f},
    {"y", "m/s2", 0.0f, 1.0f},
    {"z", "m/s2", 0.0f, 1.0f},
};

static const fedmq_identity identity = {
    {0x00, 0x00, 0x01},             /* uid: another one for each device that you make */
    "pump-3",                       /* what people call it */
    "1.0.0",                        /* your firmware */
    RATE_HZ * 1000u, STEP, CHANNELS, channels,
};

/* --- ADXL345 ------------------------------------------------------------------------------------------------------ */

static const SPISettings adxl_spi(4000000, MSBFIRST, SPI_MODE3);

enum {
    DEVICE_ID = 0x00, RATE = 0x2C, POWER = 0x2D, INT_SOURCE = 0x30, FORMAT = 0x31, FIFO = 0x38, FIFO_STATUS = 0x39,
    READ = 0x80, SEVERAL = 0x40
};

static void adxl_write(uint8_t address, uint8_t value)
{
    SPI.beginTransaction(adxl_spi);
    digitalWrite(ADXL, LOW);
    SPI.transfer(address);
    SPI.transfer(value);
    digitalWrite(ADXL, HIGH);
    SPI.endTransaction();
}

static void adxl_read(uint8_t address, uint8_t *to, uint8_t length)
{
    SPI.beginTransaction(adxl_spi);
    digitalWrite(ADXL, LOW);
    SPI.transfer(READ | (length > 1 ? SEVERAL : 0) | address);
    for (uint8_t i = 0; i < length; i++) {
        to[i] = SPI.transfer(0);
    }
    digitalWrite(ADXL, HIGH);
    SPI.endTransaction();
}

static uint8_t adxl_register(uint8_t address)
{
    uint8_t value;
    adxl_read(address, &value, 1);
    return value;
}

static void adxl_start()
{
    pinMode(ADXL, OUTPUT);
    digitalWrite(ADXL, HIGH);
    SPI.begin();
    while (adxl_register(DEVICE_ID) != 0xE5) {
        delay(100); /* not wired, or not yet powered: nothing is sent, and the gateway shows a silent line */
    }
    adxl_write(RATE, 0x0F);   /* 3,200 Hz */
    adxl_write(FORMAT, 0x0B); /* full resolution, 16 g */
    adxl_write(FIFO, 0x80);   /* stream: keeps the newest 32 samples */
    adxl_write(POWER, 0x08);  /* measure */
}

/* --- clock -------------------------------------------------------------------------------------------------------- */

/* micros() wraps after 71 minutes; this does not, if it is called more often than that. */
static uint64_t now_us()
{
    static uint32_t last, wraps;
    uint32_t now = micros();
    if (now < last) {
        wraps++;
    }
    last = now;
    return (uint64_t)wraps << 32 | now;
}

/* --- frames ------------------------------------------------------------------------------------------------------- */

static fedmq_head samples_head, hello_head;
static fedmq_encoder encoder;
static fedmq_decoder decoder;
static uint8_t block_buffer[FEDMQ_SAMPLES_ENCODED(CHANNELS, BLOCK)];
static uint8_t in_buffer[FEDMQ_OVERHEAD];
static uint8_t in_block; /* samples in the block at hand */
static uint8_t asked;
static uint32_t hello_at_ms;

static void say_hello()
{
    uint8_t out[FEDMQ_HELLO_ENCODED(CHANNELS)];
    size_t length = fedmq_encode_hello(out, sizeof out, &hello_head, &identity, now_us());
    Serial.write(out, length);
    hello_head.sequence++;
    hello_at_ms = millis();
    asked = 0;
}

/* Reads the oldest of |waiting| samples. */
static void take_sample(uint8_t waiting)
{
    /* INT_SOURCE stands two registers before the data, and reading the data clears it: both in one go. */
    uint8_t read[2 + 2 * CHANNELS];
    adxl_read(INT_SOURCE, read, sizeof read);
    delayMicroseconds(5); /* the chip moves the next sample up */
    uint8_t overrun = read[0] & 0x01;
    if (overrun) {
        in_block = 0; /* samples before this one are gone: the block that they were to be in cannot be whole */
    }
    if (in_block == 0) {
        fedmq_samples block;
        block.taken_us = now_us() - waiting * 1000000ul / RATE_HZ;
        block.rate_mhz = RATE_HZ * 1000u;
        block.scale = STEP;
        block.channels = CHANNELS;
        block.overrun = overrun;
        block.count = BLOCK;
        fedmq_begin_samples(&encoder, block_buffer, sizeof block_buffer, &samples_head, &block);
    }
    fedmq_put(&encoder, read + 2, 2 * CHANNELS); /* little-endian int16 already, as the frame wants them */
    if (++in_block == BLOCK) {
        size_t length = fedmq_end(&encoder);
        Serial.write(block_buffer, length);
        samples_head.sequence++;
        in_block = 0;
    }
}

void setup()
{
    /* A boot number: the lowest bits of an open input are noise. */
    uint16_t boot = 1;
    for (uint8_t i = 0; i < 64; i++) {
        boot = boot * 31 + analogRead(A0);
    }
    samples_head.sensor = hello_head.sensor = SENSOR;
    samples_head.boot = hello_head.boot = boot != 0 ? boot : 1;
    fedmq_decoder_start(&decoder, in_buffer, sizeof in_buffer);

    Serial.begin(BAUD);
    Serial.write((uint8_t)0); /* ends whatever the line had picked up */
    adxl_start();
    say_hello();
}

void loop()
{
    while (Serial.available() > 0) {
        if (fedmq_decode(&decoder, (uint8_t)Serial.read()) == FEDMQ_FRAME && fedmq_asked(&decoder, SENSOR)) {
            asked = 1;
        }
    }
    if (in_block == 0 && (asked || millis() - hello_at_ms >= 10000)) {
        say_hello();
    }
    for (uint8_t waiting = adxl_register(FIFO_STATUS) & 0x3F; waiting > 0; waiting--) {
        take_sample(waiting);
    }
}
