%%% Leads a listener: opens and closes the socket, and ends the connections.
%%%
%%% It never waits, except in its own end, so that it can always be asked. Its messages:
%%%
%%% - `{Ticket, 0}': the last connection of a drain has ended;
%%% - `{timeout, Timer, deadline}': the time of a drain is over;
%%% - `{'DOWN', Monitor, process, _, _}': an acceptor died, or the application stopped.
-module(py_reactor_listener).

-behaviour(gen_server).

-include_lib("kernel/include/logger.hrl").

%% API
-export([start_link/4, suspend/1, resume/1, drain/2]).
%% For acceptors
-export([join/1, paused/2]).

%% gen_server callbacks
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

%% A drain: who waits for its end, and until when. Without a timer it waits for as long as it takes.
-record(drain, {
    ticket :: py_nif:ticket(),
    waiting = [] :: [gen_server:from()],
    timer :: reference() | undefined
}).

-record(state, {
    name :: py_reactor_listeners:name(),
    supervisor :: pid(),
    handle :: py_nif:listener(),
    options :: py_reactor_listener_options:checked(),
    status :: running | suspended | draining,
    drain :: #drain{} | undefined,
    %% By monitor.
    acceptors = #{} :: #{reference() => pid()},
    application :: reference(),
    %% When a pause was logged last, in monotonic milliseconds, and how many were not logged since.
    logged_ms :: integer() | undefined,
    unlogged = 0 :: non_neg_integer()
}).

%% Between two log lines of pauses.
-define(LOG_PAUSE_MS, 1000).

%% How long the end of a listener waits for its connections to close once they must. A worker that
%% takes longer is held up by a callback, and closes them when that returns.
-define(END_MS, 1000).

-spec start_link(
    py_reactor_listeners:name(), pid(), py_nif:listener(), py_reactor_listener_options:checked()
) -> gen_server:start_ret().
start_link(Name, Supervisor, Handle, Options) ->
    gen_server:start_link(?MODULE, {Name, Supervisor, Handle, Options}, []).

-spec suspend(pid()) -> ok | {error, draining}.
suspend(Listener) ->
    gen_server:call(Listener, suspend, infinity).

-spec resume(pid()) -> ok | {error, draining | inet:posix()}.
resume(Listener) ->
    gen_server:call(Listener, resume, infinity).

%% @doc `shutdown' is the time that the option of this name says.
-spec drain(pid(), timeout() | shutdown) -> {ok, StillOpen :: non_neg_integer()}.
drain(Listener, DeadlineMs) ->
    gen_server:call(Listener, {drain, DeadlineMs}, infinity).

%% @doc The calling acceptor is to be told when the socket is opened and closed.
-spec join(pid()) -> ok.
join(Listener) ->
    gen_server:call(Listener, join, infinity).

%% @doc An acceptor makes a pause.
-spec paused(pid(), atom()) -> ok.
paused(Listener, Reason) ->
    gen_server:cast(Listener, {paused, Reason}).

%%--------------------------------------------------------------------------------------------------
%% gen_server

%% @private
-spec init({
    py_reactor_listeners:name(), pid(), py_nif:listener(), py_reactor_listener_options:checked()
}) -> {ok, #state{}}.
init({Name, Supervisor, Handle, Options}) ->
    process_flag(trap_exit, true),
    State = #state{
        name = Name,
        supervisor = Supervisor,
        handle = Handle,
        options = Options,
        status = suspended,
        application = monitor(process, py_reactor_sup)
    },
    %% One that was killed left the socket, and the stage of the connections, as they were.
    case py_nif:listener_state(Handle) of
        {open, serving} ->
            {ok, State#state{status = running}};
        {closed, serving} ->
            {ok, State};
        {_, Stage} ->
            {ok, drain_on(Stage, State)}
    end.

%% @private
-spec handle_call(term(), gen_server:from(), #state{}) ->
    {reply, term(), #state{}} | {noreply, #state{}}.
handle_call(join, {Acceptor, _}, #state{acceptors = Acceptors} = State) ->
    {reply, ok, State#state{acceptors = Acceptors#{monitor(process, Acceptor) => Acceptor}}};
handle_call({drain, DeadlineMs}, From, State) ->
    {noreply, drain(DeadlineMs, From, State)};
handle_call(Change, _From, #state{status = draining} = State) when
    Change =:= suspend; Change =:= resume
->
    {reply, {error, draining}, State};
handle_call(suspend, _From, #state{status = running} = State) ->
    close(State),
    event(suspend, State),
    {reply, ok, State#state{status = suspended}};
handle_call(resume, _From, #state{status = suspended} = State) ->
    {Answer, Resumed} = open(State),
    {reply, Answer, Resumed};
handle_call(Change, _From, State) when Change =:= suspend; Change =:= resume ->
    %% It is so already.
    {reply, ok, State};
handle_call(Call, _From, State) ->
    ?LOG_WARNING(#{what => unexpected_call, process => ?MODULE, call => Call}),
    {reply, {error, unknown_call}, State}.

%% @private
-spec handle_cast(term(), #state{}) -> {noreply, #state{}}.
handle_cast({paused, Reason}, #state{name = Name} = State) ->
    py_reactor_events:execute([py_reactor, listener, pause], #{count => 1}, #{
        name => Name, reason => Reason
    }),
    {noreply, log_pause(Reason, erlang:monotonic_time(millisecond), State)};
handle_cast(Cast, State) ->
    ?LOG_WARNING(#{what => unexpected_cast, process => ?MODULE, cast => Cast}),
    {noreply, State}.

%% @private
-spec handle_info(term(), #state{}) -> {noreply, #state{}} | {stop, term(), #state{}}.
handle_info({Ticket, 0}, #state{drain = #drain{ticket = Ticket}} = State) ->
    {noreply, drained(State)};
handle_info({timeout, Timer, deadline}, #state{drain = #drain{timer = Timer}} = State) ->
    {noreply, deadline(State)};
handle_info({timeout, _Cancelled, deadline}, State) ->
    {noreply, State};
handle_info({'DOWN', Monitor, process, _, _}, #state{application = Monitor} = State) ->
    %% Its contexts are gone, and so is the name of this listener.
    {stop, {shutdown, not_running}, State};
handle_info({'DOWN', Monitor, process, _, _}, #state{acceptors = Acceptors} = State) ->
    {noreply, State#state{acceptors = maps:remove(Monitor, Acceptors)}};
handle_info(Message, State) ->
    ?LOG_WARNING(#{what => unexpected_message, process => ?MODULE, message => Message}),
    {noreply, State}.

%% @private
-spec terminate(term(), #state{}) -> ok.
terminate(Reason, #state{name = Name, supervisor = Supervisor} = State) when
    Reason =:= shutdown; Reason =:= normal; element(1, Reason) =:= shutdown
->
    %% The acceptors have ended before.
    close(State),
    finish(State),
    event(stop, State),
    py_reactor_listeners:unregister(Name, Supervisor);
terminate(_Failure, _State) ->
    %% The next one goes on with the same socket.
    ok.

%%--------------------------------------------------------------------------------------------------
%% Open and close

open(#state{handle = Handle, acceptors = Acceptors} = State) ->
    case py_nif:listener_open(Handle) of
        ok ->
            ok = py_nif:listener_set_stage(Handle, serving),
            _ = [py_reactor_acceptor:listen(Acceptor) || Acceptor <- maps:values(Acceptors)],
            event(resume, State),
            {ok, State#state{status = running}};
        {error, _} = Error ->
            {Error, State}
    end.

%% Acceptors learn it from the socket as well, unless they wait for something else.
close(#state{handle = Handle, acceptors = Acceptors, options = #{contexts := Contexts}}) ->
    ok = py_nif:listener_close(Handle, py_reactor_pool:handles(Contexts)),
    _ = [py_reactor_acceptor:close(Acceptor) || Acceptor <- maps:values(Acceptors)],
    ok.

%%--------------------------------------------------------------------------------------------------
%% Drain

drain(shutdown, From, #state{options = #{shutdown := brutal_kill}} = State) ->
    drain(0, From, State);
drain(shutdown, From, #state{options = #{shutdown := Ms}} = State) ->
    drain(Ms, From, State);
drain(DeadlineMs, From, #state{status = draining, drain = Drain} = State) ->
    #drain{waiting = Waiting} = Drain,
    State#state{drain = hasten(DeadlineMs, Drain#drain{waiting = [From | Waiting]})};
drain(DeadlineMs, From, State) ->
    close(State),
    event(drain, State),
    #state{drain = Drain} = Draining = drain_on(draining, State),
    Draining#state{drain = hasten(DeadlineMs, Drain#drain{waiting = [From]})}.

%% From here on the connections end, and the ticket is answered when they all have.
drain_on(Stage, #state{handle = Handle} = State) ->
    ok = py_nif:listener_set_stage(Handle, Stage),
    State#state{status = draining, drain = #drain{ticket = py_nif:listener_await(Handle, 0, 0)}}.

%% The earliest deadline counts.
hasten(infinity, Drain) ->
    Drain;
hasten(Ms, #drain{timer = undefined} = Drain) ->
    Drain#drain{timer = erlang:start_timer(Ms, self(), deadline)};
hasten(Ms, #drain{timer = Timer} = Drain) ->
    case erlang:read_timer(Timer) of
        LeftMs when is_integer(LeftMs), LeftMs > Ms ->
            _ = erlang:cancel_timer(Timer),
            Drain#drain{timer = erlang:start_timer(Ms, self(), deadline)};
        _ ->
            Drain
    end.

deadline(#state{handle = Handle, drain = Drain} = State) ->
    #{active := StillOpen} = py_nif:listener_stats(Handle),
    ok = py_nif:listener_set_stage(Handle, ending),
    answer(StillOpen, Drain),
    State#state{drain = Drain#drain{waiting = [], timer = undefined}}.

drained(#state{handle = Handle, drain = Drain} = State) ->
    %% First: what is seen of the listener from now on is that it is suspended.
    ok = py_nif:listener_set_stage(Handle, serving),
    answer(0, Drain),
    State#state{status = suspended, drain = undefined}.

answer(StillOpen, #drain{waiting = Waiting, timer = Timer}) ->
    _ = [erlang:cancel_timer(Timer) || Timer =/= undefined],
    _ = [gen_server:reply(From, {ok, StillOpen}) || From <- Waiting],
    ok.

%% In the end of this process: connections get the time that `shutdown' says.
finish(#state{handle = Handle, options = #{shutdown := Shutdown}}) ->
    Ticket = py_nif:listener_await(Handle, 0, 0),
    case {Shutdown, py_nif:listener_state(Handle)} of
        {brutal_kill, _} -> finish_by([{ending, ?END_MS}], Ticket, Handle);
        %% A drain has given them time before.
        {_, {_, ending}} -> finish_by([{ending, ?END_MS}], Ticket, Handle);
        {Ms, _} -> finish_by([{draining, Ms}, {ending, ?END_MS}], Ticket, Handle)
    end.

finish_by([], Ticket, _Handle) ->
    _ = py_nif:cancel(Ticket),
    ok;
finish_by([{Stage, Ms} | Later], Ticket, Handle) ->
    ok = py_nif:listener_set_stage(Handle, Stage),
    receive
        {Ticket, 0} -> ok
    after Ms -> finish_by(Later, Ticket, Handle)
    end.

%%--------------------------------------------------------------------------------------------------
%% What is told

log_pause(_Reason, NowMs, #state{logged_ms = LoggedMs, unlogged = Unlogged} = State) when
    is_integer(LoggedMs), NowMs - LoggedMs < ?LOG_PAUSE_MS
->
    State#state{unlogged = Unlogged + 1};
log_pause(Reason, NowMs, #state{name = Name, unlogged = Unlogged} = State) ->
    ?LOG_WARNING(#{
        what => accepting_paused, listener => Name, reason => Reason, unlogged => Unlogged
    }),
    State#state{logged_ms = NowMs, unlogged = 0}.

event(What, #state{name = Name}) ->
    py_reactor_events:execute([py_reactor, listener, What], #{count => 1}, #{name => Name}).
